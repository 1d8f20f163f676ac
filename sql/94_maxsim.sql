-- MaxSim for those who call it themselves.

-- Sum over the query's vectors of the largest inner product with any of the document's (Khattab and Zaharia 2020,
-- https://arxiv.org/abs/2004.12832). NULL where either side has no vectors. The kernel brings a faster body.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank_native') THEN
        CREATE OR REPLACE FUNCTION maxsim(query vector[], document vector[]) RETURNS real
        LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 10000
        SET search_path FROM CURRENT
        AS $maxsim$
            SELECT sum(best)::real FROM (
                SELECT max(-(q.v <#> d.v)) AS best
                FROM unnest(query) WITH ORDINALITY q (v, i) CROSS JOIN unnest(document) d (v)
                GROUP BY q.i) scores
        $maxsim$;
        COMMENT ON FUNCTION maxsim(vector[], vector[]) IS 'MaxSim of a query''s and a document''s token vectors';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _has_native() RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT to_regprocedure('pgrerank.maxsim_agg(bytea, bytea)') IS NOT NULL $$;
