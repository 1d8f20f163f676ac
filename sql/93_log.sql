-- A sample of what people searched for and got, where a reranker's log_sample asks for it: to replay against new settings.

-- No foreign key to rerankers: its lock would make a search wait for whoever swaps a generation.
CREATE TABLE IF NOT EXISTS searches (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reranker text NOT NULL,
    generation int NOT NULL,
    query text NOT NULL,
    arguments jsonb NOT NULL,
    keys text[] NOT NULL,
    recall_ranks int[] NOT NULL,
    maxsim_ranks int[] NOT NULL,
    cross_encoder_ranks int[] NOT NULL,
    stage text NOT NULL,
    degraded boolean NOT NULL,
    reason text,
    times jsonb NOT NULL,
    searched_at timestamptz NOT NULL DEFAULT now(),
    searched_by name NOT NULL DEFAULT current_user
);
CREATE INDEX IF NOT EXISTS searches_reranker ON searches (reranker, searched_at);
COMMENT ON TABLE searches IS 'A sample of searches, for as long as their reranker''s log_retention says';
COMMENT ON COLUMN searches.arguments IS 'What the call was given besides the query; nothing that was left out';
COMMENT ON COLUMN searches.keys IS 'The documents that it returned, in their order; the ranks beside it are theirs after each stage';
COMMENT ON COLUMN searches.times IS 'Milliseconds by stage';

-- As the caller, who needs the right to write it, and only where there is something to replay: a query in words.
CREATE OR REPLACE FUNCTION _log_search(r rerankers, query text, arguments jsonb, top_k int, pool candidate[], first_stage text, reason text, times jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
BEGIN
    IF random() >= r.log_sample OR coalesce(query, '') !~ '\S' OR NOT has_table_privilege('pgrerank.searches', 'INSERT')
        OR current_setting('transaction_read_only')::boolean THEN
        RETURN;
    END IF;
    INSERT INTO searches (reranker, generation, query, arguments, keys, recall_ranks, maxsim_ranks, cross_encoder_ranks, stage, degraded, reason, times)
    SELECT r.name, r.generation, left(query, 10000), (SELECT jsonb_object_agg(a.key, a.value) FROM jsonb_each(arguments) a WHERE a.value <> 'null'),
        coalesce(array_agg(c.key ORDER BY c.rank), '{}'), coalesce(array_agg(c.recall_rank ORDER BY c.rank), '{}'),
        coalesce(array_agg(c.maxsim_rank ORDER BY c.rank), '{}'), coalesce(array_agg(c.cross_encoder_rank ORDER BY c.rank), '{}'),
        coalesce((array_agg(c.stage ORDER BY c.rank))[1], first_stage), reason IS NOT NULL, reason, times
    FROM _rows(pool, first_stage, reason, top_k) c;
END
$$;

-- Deletes what is older than its reranker's log_retention, or than what is given; a worker does so when it has nothing else to do.
CREATE OR REPLACE FUNCTION forget_searches(reranker text DEFAULT NULL, older_than interval DEFAULT NULL) RETURNS bigint
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    WITH gone AS (
        DELETE FROM searches s USING rerankers r
        WHERE r.name = s.reranker AND ($1 IS NULL OR r.name = $1) AND s.searched_at <= now() - coalesce($2, r.log_retention)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION forget_searches IS 'Deletes remembered searches that are older than log_retention or the interval given; returns how many';
