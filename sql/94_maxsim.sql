-- MaxSim for people who keep token vectors as pgvector arrays; packed tokens are scored by the worker or by the native kernel.

-- Sum over the query's vectors of the largest inner product with any of the document's (Khattab and Zaharia 2020,
-- https://arxiv.org/abs/2004.12832). NULL where either side has no vectors.
CREATE OR REPLACE FUNCTION maxsim(query vector[], document vector[]) RETURNS real
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 10000
SET search_path FROM CURRENT
AS $$
    SELECT sum(best)::real FROM (
        SELECT max(-(q.v <#> d.v)) AS best
        FROM unnest(query) WITH ORDINALITY q (v, i) CROSS JOIN unnest(document) d (v)
        GROUP BY q.i) scores
$$;
COMMENT ON FUNCTION maxsim(vector[], vector[]) IS 'MaxSim of a query''s and a document''s token vectors';
