-- A search's pool: the keys of the candidates in their order. A stage says something of some of them, a row each; by
-- that the pool is ordered anew. Here is what stages have in common; each has a file of its own. All of it is
-- SECURITY INVOKER: the caller's grants and row-level security decide what is read.

DO $do$
BEGIN
    IF to_regtype('pgrerank.scored') IS NULL THEN
        CREATE TYPE scored AS (stage text, key text, score real, rank int);
    END IF;
    IF to_regtype('pgrerank.search_call') IS NULL THEN
        CREATE TYPE search_call AS (
            query text, top_k int, filter jsonb, stages text[], keys text[], key_scores double precision[],
            query_embedding vector, query_tokens bytea, recall text, "strict" boolean, generation int, settings jsonb);
    END IF;
    IF to_regtype('pgrerank.search_scope') IS NULL THEN
        CREATE TYPE search_scope AS (
            predicate text, matching float8, documents float8, deadline timestamptz);
    END IF;
    IF to_regtype('pgrerank.search_outcome') IS NULL THEN
        CREATE TYPE search_outcome AS (pool text[], scores scored[], reason text, times jsonb);
    END IF;
END
$do$;

-- Attributes of a composite type as a list of columns.
CREATE OR REPLACE FUNCTION _attributes(_type regtype, OUT names text[], OUT columns text)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(a.attname::text ORDER BY a.attnum),
        string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid
    WHERE t.reltype = _type AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- What a search returns: these columns, and two for each stage. With other stages than before the type is made anew,
-- and with it the internal functions that name it, below and in later files.
DO $do$
DECLARE
    columns text := 'key text, score real, rank integer, stage text, degraded boolean, reason text, ' || (
        SELECT string_agg(format('%s_score real, %1$s_rank integer', s.stage), ', ' ORDER BY s.place) FROM _stages() s);
BEGIN
    IF (_attributes(to_regtype('pgrerank.ranked'))).columns IS DISTINCT FROM columns THEN
        DROP TYPE IF EXISTS ranked CASCADE;
        EXECUTE format('CREATE TYPE ranked AS (%s)', columns);
    END IF;
END
$do$;
COMMENT ON TYPE scored IS
    'What a stage said of a document; the stage "blend" stands for the blended score after the stage before it';
COMMENT ON TYPE search_call IS 'What a search was asked; settings has those given in place of the reranker''s own';
COMMENT ON TYPE search_outcome IS
    'What became of a search: keys in their last order, what every stage said, why it is degraded, milliseconds by '
    'stage';
COMMENT ON TYPE search_scope IS
    'Where a search looks, and how long: its filter as SQL over alias d, how many documents the planner expects to '
    'match it, of how many, and when it has to answer';
COMMENT ON TYPE ranked IS 'A document that a search returns, with the score and rank of every stage that it has passed';

-- Milliseconds since then.
CREATE OR REPLACE FUNCTION _milliseconds(_since timestamptz) RETURNS numeric
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT round(1000 * extract(epoch FROM clock_timestamp() - _since), 3) $$;

-- Ends a stage that would begin after the deadline, or go on.
CREATE OR REPLACE FUNCTION _check_deadline(_deadline timestamptz, _what text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF clock_timestamp() >= _deadline THEN
        PERFORM _raise('PGR02', format('the deadline passed before %s', _what));
    END IF;
END
$$;

-- The weighted sum of the scores so far, each less its mean over these keys, in units of its standard deviation there
-- (Montague and Aslam, CIKM 2001: zero-mean, unit-variance). What has no score of a key, no weight, or the same score
-- for all, adds nothing. pgrerank/evaluation/pools.py computes the same.
CREATE OR REPLACE FUNCTION _blended(_scores scored[], _keys text[], _weights jsonb)
RETURNS TABLE (key text, total real)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT k.key, coalesce(sum((_weights ->> z.stage)::float8 * z.score), 0)::real
    FROM unnest(_keys) k (key) LEFT JOIN (
        SELECT s.key, s.stage, (s.score::float8 - avg(s.score::float8) OVER stage)
            / nullif(stddev_pop(s.score::float8) OVER stage, 0) AS score
        FROM unnest(_scores) s JOIN unnest(_keys) k (key) ON k.key = s.key
        WHERE _weights ? s.stage AND s.score IS NOT NULL
        WINDOW stage AS (PARTITION BY s.stage)) z ON z.key = k.key
    GROUP BY k.key
$$;

-- What a stage says of candidates: their scores, and the ranks by them or, where weights are given, by the scores
-- blended so far, which stand in rows of their own. Of equal scores the lower key comes first. A score that is not
-- finite is none.
CREATE OR REPLACE FUNCTION _said(_stage text, _keys text[], _new_scores real[], _scores scored[], _weights jsonb)
RETURNS scored[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    said scored[];
BEGIN
    SELECT array_agg((_stage, n.key, n.score, n.rank)::scored) INTO said
    FROM (
        SELECT n.key, n.score, row_number() OVER (ORDER BY n.score DESC, n.key) AS rank
        FROM unnest(_keys, _new_scores) n (key, score)
        WHERE n.score > '-Infinity' AND n.score < 'Infinity') n;
    IF _weights IS NULL THEN
        RETURN said;
    END IF;
    RETURN (
        SELECT array_agg((_stage, s.key, s.score, b.rank)::scored)
            || array_agg(('blend', s.key, b.total, b.rank)::scored)
        FROM unnest(said) s JOIN (
            SELECT b.key, b.total, row_number() OVER (ORDER BY b.total DESC, b.key) AS rank
            FROM _blended(_scores || said, _keys, _weights) b) b ON b.key = s.key);
END
$$;

-- The pool after a stage: what it ranked, first; the rest as it stood.
CREATE OR REPLACE FUNCTION _reordered(_pool text[], _stage text, _said scored[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(c.key ORDER BY s.rank, c.place)
    FROM unnest(_pool) WITH ORDINALITY c (key, place)
    LEFT JOIN unnest(_said) s ON s.key = c.key AND s.stage = _stage
$$;

-- _ranked(outcome, top_k): the first documents of a pool as a search returns them. A document's score is what was
-- said of it last; its stage is the last one that ranked it. It is written out of the stages, whose rows become columns
-- here and nowhere else.
DO $do$
BEGIN
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION _ranked(_outcome search_outcome, _top_k int) RETURNS SETOF ranked
        LANGUAGE sql STABLE ROWS 10
        SET search_path FROM CURRENT
        AS $body$
            SELECT d.key, d.score, d.place::int,
                d.stage, _outcome.reason IS NOT NULL, _outcome.reason, %s
            FROM (
                SELECT c.key, c.place,
                    (array_agg(s.score ORDER BY s.place DESC))[1] AS score,
                    (array_agg(s.stage ORDER BY s.place DESC) FILTER (WHERE s.stage <> 'blend'))[1] AS stage, %s
                FROM unnest(_outcome.pool[:_top_k]) WITH ORDINALITY c (key, place)
                JOIN unnest(_outcome.scores) WITH ORDINALITY s (stage, key, score, rank, place) ON s.key = c.key
                GROUP BY c.key, c.place) d
            ORDER BY d.place
        $body$ $sql$, (
        SELECT string_agg(format('d.%s_score, d.%1$s_rank', s.stage), ', ' ORDER BY s.place) FROM _stages() s), (
        SELECT string_agg(format('max(s.score) FILTER (WHERE s.stage = %1$L) AS %1$s_score, '
            'max(s.rank) FILTER (WHERE s.stage = %1$L) AS %1$s_rank', s.stage), ', ' ORDER BY s.place)
        FROM _stages() s));
END
$do$;
