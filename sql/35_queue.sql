-- The queue: documents that wait to be encoded.

CREATE SEQUENCE IF NOT EXISTS ticket;

CREATE TABLE IF NOT EXISTS pending (
    reranker text NOT NULL,
    generation int NOT NULL,
    key text NOT NULL,
    ticket bigint NOT NULL DEFAULT nextval('ticket'),
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    attempts int NOT NULL DEFAULT 0,
    claimed_by int,
    claimed_until timestamptz,
    failed_at timestamptz,
    last_error text,
    PRIMARY KEY (reranker, generation, key),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
) WITH (
    fillfactor = 50,  -- a claim writes a row once more: on its page, and without its indexes
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX IF NOT EXISTS pending_ticket ON pending (reranker, ticket) WHERE failed_at IS NULL;
COMMENT ON TABLE pending IS 'Documents that wait to be encoded, and those that failed';
COMMENT ON COLUMN pending.ticket IS 'Changes whenever the document does, so that a worker finishes only what it saw';
COMMENT ON COLUMN pending.claimed_by IS 'Process id of the claiming worker''s Postgres session';

-- For how long documents are a worker's once it has claimed them, or has gone on with one.
CREATE OR REPLACE FUNCTION _lease() RETURNS interval
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT interval '10 minutes' $$;

-- Generations that can't be worked at, for a while, so that no reranker holds up another.
CREATE TABLE IF NOT EXISTS setbacks (
    reranker text NOT NULL,
    generation int NOT NULL,
    failures int NOT NULL DEFAULT 1,
    error text NOT NULL,
    until timestamptz NOT NULL,
    missed_writes boolean NOT NULL DEFAULT false,
    failed_documents int NOT NULL DEFAULT 0,
    PRIMARY KEY (reranker, generation),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
COMMENT ON TABLE setbacks IS 'Rerankers whose source, expressions or models can''t be used for a while';
COMMENT ON COLUMN setbacks.failures IS 'How often in a row; 0 where some documents failed, but no ten of them in a row';
COMMENT ON COLUMN setbacks.missed_writes IS 'Whether writes went unseen, to be looked for then';
COMMENT ON COLUMN setbacks.failed_documents IS 'How often documents have failed since one was stored';

-- Sets a generation aside: for two seconds, then for twice as long each time, up to ten minutes. Whoever has the row,
-- a long transaction say in which a write went wrong, isn't waited for.
CREATE OR REPLACE FUNCTION _set_back(_reranker text, _generation int, _error text, _missed_writes boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '50ms'
AS $$
BEGIN
    INSERT INTO setbacks AS s (reranker, generation, error, until, missed_writes)
    SELECT g.reranker, g.number, left(_error, 1000), clock_timestamp() + interval '2 seconds', _missed_writes
    FROM generations g WHERE (g.reranker, g.number) = (_reranker, _generation)
    ON CONFLICT (reranker, generation) DO UPDATE
    SET failures = s.failures + 1, error = excluded.error,
        until = clock_timestamp() + least(interval '1 second' * 2 ^ least(s.failures + 1, 10), interval '10 minutes'),
        missed_writes = s.missed_writes OR excluded.missed_writes;
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

-- Counts a document that failed. Where ten have done so in a row it is not theirs: the generation is set aside, once
-- for all that fail meanwhile.
CREATE OR REPLACE FUNCTION _count_failure(_reranker text, _generation int, _error text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '50ms'
AS $$
BEGIN
    INSERT INTO setbacks AS s (reranker, generation, failures, error, until, failed_documents)
    SELECT g.reranker, g.number, 0, left(_error, 1000), clock_timestamp(), 1
    FROM generations g WHERE (g.reranker, g.number) = (_reranker, _generation)
    ON CONFLICT (reranker, generation) DO UPDATE SET failed_documents = s.failed_documents + 1;
    PERFORM _set_back(s.reranker, s.generation, _error) FROM setbacks s
    WHERE (s.reranker, s.generation) = (_reranker, _generation) AND s.failed_documents >= 10
      AND s.until <= clock_timestamp();
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

-- Sets all generations of a reranker aside.
CREATE OR REPLACE FUNCTION _set_all_back(_reranker text, _error text, _missed_writes boolean) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _set_back(g.reranker, g.number, _error, _missed_writes) FROM generations g WHERE g.reranker = _reranker
$$;

-- A statement that enqueues the keys, as text, which a query yields; what was enqueued before starts anew. It is text
-- and no function of its own, for only a trigger function itself sees the transition tables.
CREATE OR REPLACE FUNCTION _enqueue_sql(_reranker text, _generation int, _keys_query text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format($sql$
        INSERT INTO pending (reranker, generation, key)
        SELECT %L, %s, k.key FROM (%s) k ORDER BY k.key
        ON CONFLICT (reranker, generation, key) DO UPDATE
        SET ticket = DEFAULT, enqueued_at = DEFAULT, attempts = DEFAULT,
            claimed_by = NULL, claimed_until = NULL, failed_at = NULL, last_error = NULL
        $sql$, _reranker, _generation, _keys_query)
$$;
