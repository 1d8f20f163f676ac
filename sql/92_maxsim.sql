-- The MaxSim stages, by the native kernel where the server has it, else by the worker; and MaxSim for those who call it
-- themselves.

-- MaxSim of documents over one tier of their token vectors. The kernel scores as many at a time as take some 20 ms, by
-- those before, for they may have to be read from a disk, and heeds the deadline in between.
CREATE OR REPLACE FUNCTION _maxsim_of_tier(
    _tier text, _reranker rerankers, _generation generations, _query bytea, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    token_table text := _side_table(_generation, _tier);
    size int := 64;
    done int := 0;
    started timestamptz;
    part record;
BEGIN
    IF has_native_kernel() THEN
        WHILE done < cardinality(_keys) LOOP
            PERFORM _check_deadline(_deadline, 'all documents were scored by MaxSim');
            started := clock_timestamp();
            part := _maxsim_by_kernel(token_table, _reranker.key_type, _keys[done + 1:done + size], _query);
            keys := keys || part.keys;
            scores := scores || part.scores;
            done := done + size;
            size := least(greatest(20 * size / greatest(_milliseconds(started), 1), 16), 10000);
        END LOOP;
    ELSE
        SELECT * INTO keys, scores FROM _maxsim_by_worker(token_table, _reranker.key_type, _keys, _query, _deadline);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _score_maxsim(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[])
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT s.* FROM _maxsim_of_tier('tokens', _reranker, _generation, _call.query_tokens, _keys, _deadline) s $$;

CREATE OR REPLACE FUNCTION _score_maxsim_bit(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[])
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT s.* FROM _maxsim_of_tier('bits', _reranker, _generation, _call.query_tokens, _keys, _deadline) s $$;

-- One set-based statement over the parts of the documents. A malformed one ends the stage, not the search. The
-- planner estimates every element of an array that it sees, hence it is hidden in a subquery. The index yields parts in
-- the order of keys; after a bitmap they would be sorted, hence copied.
CREATE OR REPLACE FUNCTION _maxsim_by_kernel(
    _token_table text, _key_type text, _keys text[], _query bytea, OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_bitmapscan = off
AS $$
BEGIN
    EXECUTE format($sql$
        SELECT array_agg(d.key::text), array_agg(d.score)
        FROM (
            SELECT t.key, maxsim_agg($2, t.tokens) AS score
            FROM %s t WHERE t.key = ANY ((SELECT $1)::%s[]) GROUP BY t.key) d
        $sql$, _token_table, _key_type)
    INTO keys, scores USING _keys, _query;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('PGR03', format('MaxSim of %s: %s', _token_table, SQLERRM));
END
$$;

-- Token matrices go over to the worker in batches of some 16 MiB, written as 32 MiB of hexadecimal: an eighth of the
-- longest message that it takes. Scores come back.
CREATE OR REPLACE FUNCTION _maxsim_by_worker(
    _token_table text, _key_type text, _keys text[], _query bytea, _deadline timestamptz,
    OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    batch text[];
    request text;
BEGIN
    keys := '{}';
    scores := '{}';
    FOR batch IN EXECUTE format($sql$
        SELECT array_agg(d.key::text)
        FROM (
            SELECT t.key, (sum(sum(octet_length(t.tokens))) OVER (ORDER BY t.key))::bigint / 16777216 AS batch
            FROM %s t WHERE t.key = ANY ($1::%s[]) GROUP BY t.key) d
        GROUP BY d.batch
        $sql$, _token_table, _key_type) USING _keys
    LOOP
        -- Hexadecimal goes into JSON as it is; json_build_object would look through megabytes for what to escape.
        EXECUTE format($sql$
            SELECT concat('{"call": "maxsim", "query": "', encode($2, 'hex'), '", "documents": ["',
                string_agg(d.tokens, '","' ORDER BY b.place), '"]}')
            FROM unnest($1::%1$s[]) WITH ORDINALITY b (key, place)
            JOIN (
                SELECT t.key, string_agg(encode(t.tokens, 'hex'), '' ORDER BY t.part) AS tokens
                FROM %2$s t WHERE t.key = ANY ($1::%1$s[]) GROUP BY t.key) d ON d.key = b.key
            $sql$, _key_type, _token_table)
        INTO request USING batch, _query;
        scores := scores || _scores(_ask_worker(request, _deadline), cardinality(batch));
        keys := keys || batch;
    END LOOP;
END
$$;

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

CREATE OR REPLACE FUNCTION has_native_kernel() RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT to_regprocedure('pgrerank.maxsim_agg(bytea, bytea)') IS NOT NULL $$;
COMMENT ON FUNCTION has_native_kernel IS 'Whether MaxSim is scored by the native kernel in this database';
