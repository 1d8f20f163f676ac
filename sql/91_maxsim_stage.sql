-- The MaxSim stages: by the native kernel where the server has it, else by the worker.

-- Writes a stage's scores into the pool, which it orders: by the last stage's rank, then, for the candidates that it left
-- out, by the ranks before. scores and keys are parallel.
CREATE OR REPLACE FUNCTION _rank_by(pool candidate[], stage text, keys text[], scores real[]) RETURNS candidate[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg((c.key, c.recall_score, c.recall_rank,
            CASE stage WHEN 'maxsim_bit' THEN s.score ELSE c.maxsim_bit_score END, CASE stage WHEN 'maxsim_bit' THEN s.rank ELSE c.maxsim_bit_rank END,
            CASE stage WHEN 'maxsim' THEN s.score ELSE c.maxsim_score END, CASE stage WHEN 'maxsim' THEN s.rank ELSE c.maxsim_rank END,
            CASE stage WHEN 'cross_encoder' THEN s.score END, CASE stage WHEN 'cross_encoder' THEN s.rank END)::candidate
        ORDER BY s.rank, c.maxsim_rank, c.maxsim_bit_rank, c.recall_rank)
    FROM unnest(pool) c LEFT JOIN (
        SELECT u.key, u.score, (row_number() OVER (ORDER BY u.score DESC, u.key))::int AS rank FROM unnest(keys, scores) u (key, score)) s USING (key)
$$;

-- One set-based statement over the parts of the pool's documents. A malformed one ends the stage, not the search.
-- The planner estimates every element of an array that it sees. Of a large pool it shall, as a parallel plan may come of it;
-- a small one is hidden in a subquery. The index yields parts in the order of keys; after a bitmap they would be sorted, hence copied.
CREATE OR REPLACE FUNCTION _score_by_kernel(parts text, key_type regtype, pool text[], query bytea, OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_bitmapscan = off
AS $$
BEGIN
    EXECUTE format(
        'SELECT array_agg(key::text), array_agg(score) FROM ('
        'SELECT p.key, maxsim_agg($2, p.tokens) AS score FROM %1$s p WHERE p.key = ANY (%2$s) GROUP BY p.key) scored', parts,
        format(CASE WHEN cardinality(pool) > 2000 THEN '$1::%1$s[]' ELSE '(SELECT $1::%1$s[])::%1$s[]' END, key_type))
    INTO keys, scores USING pool, query;
EXCEPTION WHEN data_exception THEN
    PERFORM _fail('PGR03', format('MaxSim of %s: %s', parts, SQLERRM));
END
$$;

-- Token matrices go over to the worker in batches of bounded size, scores come back.
CREATE OR REPLACE FUNCTION _score_by_worker(parts text, key_type regtype, pool text[], query bytea, deadline timestamptz, OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    batch text[];
    request text;
BEGIN
    keys := '{}';
    scores := '{}';
    FOR batch IN EXECUTE format(
        'SELECT array_agg(key::text) FROM ('
        'SELECT key, (sum(sum(octet_length(tokens))) OVER (ORDER BY key))::bigint / 16777216 AS batch FROM %s '
        'WHERE key = ANY ($1::%s[]) GROUP BY key) sizes GROUP BY div(batch, 1)', parts, key_type) USING pool
    LOOP
        EXECUTE format(
            'SELECT format(''{"call": "maxsim", "query": "%%s", "documents": ["%%s"]}'', encode($2, ''hex''), string_agg(d.tokens, ''","'' ORDER BY u.i)) '
            'FROM unnest($1::%1$s[]) WITH ORDINALITY u (key, i) JOIN ('
            'SELECT key, string_agg(encode(tokens, ''hex''), '''' ORDER BY part) AS tokens FROM %2$s WHERE key = ANY ($1::%1$s[]) GROUP BY key) d ON d.key = u.key',
            key_type, parts)
        INTO request USING batch, query;
        scores := scores || _scores(_call(request, deadline), cardinality(batch));
        keys := keys || batch;
    END LOOP;
END
$$;

-- Scores the first n candidates over one tier of their token vectors.
CREATE OR REPLACE FUNCTION _maxsim(r rerankers, pool candidate[], stage text, n int, query_tokens bytea, deadline timestamptz) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    parts text := _parts(r.name, r.generation, CASE stage WHEN 'maxsim_bit' THEN 'bits' ELSE 'tokens' END);
    chosen text[] := ARRAY(SELECT c.key FROM unnest(pool) c LIMIT n);
    scored record;
BEGIN
    IF _has_native() THEN
        scored := _score_by_kernel(parts, r.key_type, chosen, query_tokens);
    ELSE
        scored := _score_by_worker(parts, r.key_type, chosen, query_tokens, deadline);
    END IF;
    RETURN _rank_by(pool, stage, scored.keys, scored.scores);
END
$$;
