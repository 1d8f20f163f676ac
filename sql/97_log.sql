-- A sample of what people searched for and got, where a reranker's log_sample asks for it: to replay against new
-- settings.

-- No foreign key to rerankers: its lock would make a search wait for whoever swaps a generation.
CREATE TABLE IF NOT EXISTS searches (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reranker text NOT NULL,
    generation int NOT NULL,
    query text NOT NULL,
    arguments jsonb NOT NULL,
    keys text[] NOT NULL,
    ranks jsonb NOT NULL,
    stage text,
    degraded boolean NOT NULL,
    reason text,
    scored jsonb NOT NULL,
    left_out int NOT NULL,
    times jsonb NOT NULL,
    searched_at timestamptz NOT NULL DEFAULT now(),
    searched_by name NOT NULL DEFAULT current_user
);
CREATE INDEX IF NOT EXISTS searches_reranker ON searches (reranker, searched_at);
COMMENT ON TABLE searches IS 'A sample of searches, for as long as their reranker''s log_retention says';
COMMENT ON COLUMN searches.arguments IS 'What the call was given besides the query; nothing that was left out';
COMMENT ON COLUMN searches.stage IS 'The last stage that ranked the first document; NULL where there is none';
COMMENT ON COLUMN searches.keys IS 'The documents that it returned, in their order';
COMMENT ON COLUMN searches.ranks IS 'By stage, their ranks after it, in the order of the keys';
COMMENT ON COLUMN searches.scored IS 'By stage, how many documents it scored';
COMMENT ON COLUMN searches.left_out IS 'How many documents min_relevance left out of the answer';
COMMENT ON COLUMN searches.times IS 'Milliseconds by stage';

-- As the caller, who needs the right to write it, and only where there is something to replay: a query in words, and
-- no vectors or candidates of the caller's own.
CREATE OR REPLACE FUNCTION _log_search(_reranker rerankers, _call search_call, _outcome search_outcome) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    returned text[];
    last_stage text;
BEGIN
    IF random() >= _reranker.log_sample OR coalesce(_call.query, '') !~ '\S'
        OR _call.keys IS NOT NULL OR _call.query_embedding IS NOT NULL OR _call.query_tokens IS NOT NULL
        OR NOT has_table_privilege('pgrerank.searches', 'INSERT')
        OR current_setting('transaction_read_only')::boolean THEN
        RETURN;
    END IF;
    SELECT array_agg(d.key ORDER BY d.rank), min(d.stage) FILTER (WHERE d.rank = 1) INTO returned, last_stage
    FROM _ranked(_outcome, _outcome.returned) d;
    INSERT INTO searches (reranker, generation, query, arguments, keys, ranks, stage, degraded, reason, scored,
        left_out, times)
    VALUES (
        _reranker.name, _reranker.generation, left(_call.query, _longest_query()), _logged_arguments(_call),
        coalesce(returned, '{}'),
        (SELECT coalesce(jsonb_object_agg(b.stage, b.ranks), '{}') FROM _by_stage(_outcome, _outcome.returned) b),
        last_stage, _outcome.reason IS NOT NULL, coalesce(_outcome.reason, _outcome.fallback),
        _scored_counts(_outcome), coalesce(_outcome.left_out, 0), _outcome.times);
END
$$;

-- The arguments of a call that were given, without the query and what is as it would be without.
CREATE OR REPLACE FUNCTION _logged_arguments(_call search_call) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT jsonb_object_agg(a.key, a.value)
    FROM jsonb_each(to_jsonb(_call) - '{query,settings}'::text[] || _call.settings) a
    WHERE a.value <> 'null' AND (a.key, a.value) <> ('recall', '"auto"')
$$;

-- Deletes what is older than its reranker's log_retention, or than what is given; a worker does so when it has
-- nothing else to do.
CREATE OR REPLACE FUNCTION forget_searches(reranker text DEFAULT NULL, older_than interval DEFAULT NULL) RETURNS bigint
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    WITH gone AS (
        DELETE FROM searches s USING rerankers r
        WHERE r.name = s.reranker AND (forget_searches.reranker IS NULL OR r.name = forget_searches.reranker)
          AND s.searched_at <= now() - coalesce(forget_searches.older_than, r.log_retention)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION forget_searches IS
    'Deletes remembered searches that are older than log_retention or the interval given; returns how many';
