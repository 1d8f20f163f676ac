-- The MaxSim stages: by the native kernel where the server has it, else by the worker.

-- The weighted sum of the scores so far, each less its mean over the candidates that this stage has scored, in units of its
-- standard deviation there (Montague and Aslam, CIKM 2001: zero-mean, unit-variance). A stage that did not run, or that has
-- no score of a candidate, adds nothing.
CREATE OR REPLACE FUNCTION _blended(pool candidate[], stage text, keys text[], scores real[], blend jsonb) RETURNS real[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(b.total::real ORDER BY b.place) FROM (
        SELECT s.place,
            coalesce((blend ->> 'recall')::float8 * (s.recall - avg(s.recall) OVER w) / nullif(stddev_pop(s.recall) OVER w, 0), 0)
            + coalesce((blend ->> 'maxsim')::float8 * (s.maxsim - avg(s.maxsim) OVER w) / nullif(stddev_pop(s.maxsim) OVER w, 0), 0)
            + coalesce((blend ->> 'cross_encoder')::float8 * (s.cross_encoder - avg(s.cross_encoder) OVER w) / nullif(stddev_pop(s.cross_encoder) OVER w, 0), 0) AS total
        FROM (
            SELECT u.place, c.recall_score::float8 AS recall, CASE stage WHEN 'maxsim' THEN u.score ELSE c.maxsim_score END::float8 AS maxsim,
                CASE stage WHEN 'cross_encoder' THEN u.score END::float8 AS cross_encoder
            FROM unnest(keys, scores) WITH ORDINALITY u (key, score, place) JOIN unnest(pool) c USING (key)) s
        WINDOW w AS ()) b
$$;

-- Writes a stage's scores into the pool, which it orders: by the last stage's rank, then, for the candidates that it left
-- out, by the ranks before. scores and keys are parallel. The rank is that of the score, or, where weights are given, of the
-- blended one.
CREATE OR REPLACE FUNCTION _rank_by(pool candidate[], stage text, keys text[], scores real[], blend jsonb) RETURNS candidate[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg((c.key, c.recall_score, c.recall_rank,
            CASE stage WHEN 'maxsim_bit' THEN s.score ELSE c.maxsim_bit_score END, CASE stage WHEN 'maxsim_bit' THEN s.rank ELSE c.maxsim_bit_rank END,
            CASE stage WHEN 'maxsim' THEN s.score ELSE c.maxsim_score END, CASE stage WHEN 'maxsim' THEN s.rank ELSE c.maxsim_rank END,
            CASE stage WHEN 'cross_encoder' THEN s.score END, CASE stage WHEN 'cross_encoder' THEN s.rank END,
            coalesce(s.blended, c.blended_score))::candidate
        ORDER BY s.rank, c.maxsim_rank, c.maxsim_bit_rank, c.recall_rank)
    FROM unnest(pool) c LEFT JOIN (
        SELECT u.key, u.score, u.blended, (row_number() OVER (ORDER BY coalesce(u.blended, u.score) DESC, u.key))::int AS rank
        FROM unnest(keys, scores, CASE WHEN blend IS NOT NULL THEN _blended(pool, stage, keys, scores, blend) END) u (key, score, blended)) s USING (key)
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
    RETURN _rank_by(pool, stage, scored.keys, scored.scores, CASE stage WHEN 'maxsim' THEN r.blend END);
END
$$;
