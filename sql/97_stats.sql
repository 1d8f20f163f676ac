-- How many searches there were, how long each stage took, and what degraded them. A search writes one row, in a table
-- of its own kind: it is unlogged and has no index, so that nothing is written ahead, nothing waits for a disk, and no
-- two searches want the same row. Workers sum these rows up. No query, key or argument of a search is in them.

DO $do$
BEGIN
    IF to_regclass('pgrerank.counted_searches') IS NULL THEN
        CREATE UNLOGGED TABLE counted_searches (
            reranker text NOT NULL,
            times jsonb NOT NULL,
            scored jsonb NOT NULL,
            reason text);
        GRANT INSERT ON counted_searches TO PUBLIC;
    END IF;
END
$do$;
COMMENT ON TABLE counted_searches IS
    'Searches that are to be summed up in pgrerank.stats; who has no INSERT on it searches and is not counted';
COMMENT ON COLUMN counted_searches.times IS 'Milliseconds by stage';
COMMENT ON COLUMN counted_searches.scored IS 'By stage, how many documents it scored';
COMMENT ON COLUMN counted_searches.reason IS 'What kind of trouble degraded it; NULL where nothing did';

-- The sums: a row for each stage of a reranker, kind of trouble and bucket of the histogram.
CREATE TABLE IF NOT EXISTS summed_searches (
    reranker text NOT NULL,
    stage text NOT NULL,
    reason text NOT NULL,
    up_to real NOT NULL,
    calls bigint NOT NULL,
    milliseconds numeric NOT NULL,
    documents bigint NOT NULL,
    PRIMARY KEY (reranker, stage, reason, up_to)
);
COMMENT ON TABLE summed_searches IS 'Searches that have been summed up; pgrerank.stats has them with those that wait';
COMMENT ON COLUMN summed_searches.reason IS 'As in counted_searches; empty where nothing degraded it, and for stages';
COMMENT ON COLUMN summed_searches.up_to IS
    'The bucket: calls that took no more milliseconds than this, and more than the one below';

CREATE TABLE IF NOT EXISTS stats_resets (
    reranker text PRIMARY KEY,
    reset_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE stats_resets IS 'When the statistics of a reranker were begun anew';

GRANT SELECT ON counted_searches, summed_searches, stats_resets TO pg_monitor;

-- The upper bounds of the histogram's buckets, in milliseconds.
CREATE OR REPLACE FUNCTION stats_bounds() RETURNS real[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT '{1,2,5,10,20,50,100,200,500,1000,2000,5000,10000,Infinity}'::real[] $$;
COMMENT ON FUNCTION stats_bounds() IS 'Upper bounds in milliseconds of the buckets in pgrerank.stats';

-- What kind of trouble a reason tells of. The reason itself may quote what a model or its endpoint said.
CREATE OR REPLACE FUNCTION _trouble(_reason text, _fallback text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE
        WHEN _reason IS NULL AND _fallback IS NULL THEN NULL
        WHEN _reason IS NULL THEN 'fallback'
        WHEN _reason ~ '^the deadline passed' THEN 'deadline'
        WHEN _reason ~ '^no worker|^the connection to the worker|^worker \d+ has gone' THEN 'unreachable'
        WHEN _reason ~ 'the worker (refused|answered|fell)' THEN 'refused'
        WHEN _reason ~ '^HNSW found' THEN 'shortage'
        ELSE 'other' END
$$;

-- As the caller. Where it can't be written, in a read-only transaction or on a standby, it isn't counted; nor where
-- no worker sums up what was.
CREATE OR REPLACE FUNCTION _count_search(_reranker rerankers, _outcome search_outcome) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NOT current_setting('transaction_read_only')::boolean
        AND has_table_privilege('pgrerank.counted_searches', 'INSERT')
        AND pg_relation_size('pgrerank.counted_searches') < 64 * 1024 ^ 2 THEN
        INSERT INTO counted_searches (reranker, times, scored, reason)
        VALUES (_reranker.name, _outcome.times,
            _scored_counts(_outcome) || jsonb_build_object('total', coalesce(cardinality(_outcome.candidates), 0)),
            _trouble(_outcome.reason, _outcome.fallback));
    END IF;
END
$$;

-- Rows of counted_searches as summed_searches has them.
CREATE OR REPLACE FUNCTION _summed(_searches counted_searches[]) RETURNS SETOF summed_searches
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT c.reranker, t.stage, CASE t.stage WHEN 'total' THEN coalesce(c.reason, '') ELSE '' END, b.up_to,
        count(*), sum(t.took), coalesce(sum((c.scored ->> t.stage)::bigint), 0)::bigint
    FROM unnest(_searches) c
    CROSS JOIN LATERAL (SELECT j.key, j.value::numeric FROM jsonb_each_text(c.times) j) t (stage, took)
    CROSS JOIN LATERAL (SELECT min(u.up_to) FROM unnest(stats_bounds()) u (up_to) WHERE t.took <= u.up_to) b (up_to)
    GROUP BY 1, 2, 3, 4
$$;

-- Adds to the sums what has been counted since, ten thousand searches at a time; one worker does so at a time.
CREATE OR REPLACE FUNCTION sum_searches() RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    taken counted_searches[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(_lock_class('counting', 0), 0) THEN
        RETURN 0;
    END IF;
    WITH gone AS (
        DELETE FROM counted_searches c WHERE c.ctid = ANY (ARRAY(
            SELECT n.ctid FROM counted_searches n LIMIT 10000 FOR UPDATE SKIP LOCKED))
        RETURNING c)
    SELECT array_agg(g.c) INTO taken FROM gone g;
    INSERT INTO summed_searches AS s SELECT * FROM _summed(taken)
    ON CONFLICT (reranker, stage, reason, up_to) DO UPDATE
    SET calls = s.calls + excluded.calls, milliseconds = s.milliseconds + excluded.milliseconds,
        documents = s.documents + excluded.documents;
    RETURN coalesce(cardinality(taken), 0);
END
$$;
COMMENT ON FUNCTION sum_searches() IS 'Adds counted searches to the sums of pgrerank.stats; workers call it';

-- All sums, with those of searches that wait. An unlogged table can't be read on a standby: there it has what had been
-- summed up on the primary.
CREATE OR REPLACE FUNCTION _all_summed() RETURNS SETOF summed_searches
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN QUERY SELECT * FROM summed_searches;
    IF NOT pg_is_in_recovery() THEN
        RETURN QUERY SELECT s.* FROM _summed(ARRAY(SELECT c FROM counted_searches c)) s;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _stats() RETURNS TABLE (
    reranker text, stage text, calls bigint, milliseconds numeric, mean_ms numeric, documents bigint,
    histogram bigint[], degraded jsonb, since timestamptz)
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    WITH summed AS MATERIALIZED (SELECT * FROM _all_summed()),
    buckets AS (
        SELECT s.reranker, s.stage, b.up_to, coalesce(sum(f.calls), 0)::bigint AS calls
        FROM (SELECT DISTINCT s.reranker, s.stage FROM summed s) s CROSS JOIN unnest(stats_bounds()) b (up_to)
        LEFT JOIN summed f ON (f.reranker, f.stage, f.up_to) = (s.reranker, s.stage, b.up_to)
        GROUP BY 1, 2, 3),
    reasons AS (
        SELECT s.reranker, s.reason, sum(s.calls) AS calls FROM summed s
        WHERE s.stage = 'total' AND s.reason <> '' GROUP BY 1, 2)
    SELECT s.reranker, s.stage, sum(s.calls)::bigint, sum(s.milliseconds),
        round(sum(s.milliseconds) / sum(s.calls), 3), sum(s.documents)::bigint,
        (SELECT array_agg(b.calls ORDER BY b.up_to) FROM buckets b WHERE (b.reranker, b.stage) = (s.reranker, s.stage)),
        CASE s.stage WHEN 'total' THEN (
            SELECT coalesce(jsonb_object_agg(r.reason, r.calls), '{}') FROM reasons r
            WHERE r.reranker = s.reranker) END,
        (SELECT r.reset_at FROM stats_resets r WHERE r.reranker = s.reranker)
    FROM summed s GROUP BY 1, 2
    ORDER BY s.reranker, s.stage = 'total', s.stage <> 'encode_query',
        (SELECT d.place FROM _stages() d WHERE d.stage = s.stage), s.stage
$$;

CREATE OR REPLACE VIEW stats AS SELECT * FROM _stats();
COMMENT ON VIEW stats IS
    'By reranker and stage: searches, their milliseconds with a histogram of them (its bounds: pgrerank.stats_bounds), '
    'documents scored; in total also how many were degraded, by what kind of trouble';
GRANT SELECT ON stats TO pg_monitor;

CREATE OR REPLACE FUNCTION reset_stats(reranker text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF reranker IS NOT NULL THEN
        PERFORM _reranker(reranker);
    END IF;
    DELETE FROM summed_searches s WHERE reset_stats.reranker IS NULL OR s.reranker = reset_stats.reranker;
    DELETE FROM counted_searches c WHERE reset_stats.reranker IS NULL OR c.reranker = reset_stats.reranker;
    INSERT INTO stats_resets AS s (reranker)
    SELECT r.name FROM rerankers r WHERE reset_stats.reranker IS NULL OR r.name = reset_stats.reranker
    ON CONFLICT ON CONSTRAINT stats_resets_pkey DO UPDATE SET reset_at = now();
END
$$;
COMMENT ON FUNCTION reset_stats IS 'Begins the statistics of a reranker anew, or those of all';

CREATE OR REPLACE FUNCTION _forget_stats(_reranker text) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    DELETE FROM counted_searches c WHERE c.reranker = _reranker;
    DELETE FROM summed_searches s WHERE s.reranker = _reranker;
    DELETE FROM stats_resets r WHERE r.reranker = _reranker
$$;
