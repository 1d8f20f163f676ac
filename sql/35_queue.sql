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
);
CREATE INDEX IF NOT EXISTS pending_ticket ON pending (ticket) WHERE failed_at IS NULL;
COMMENT ON TABLE pending IS 'Documents that wait to be encoded, and those that failed';
COMMENT ON COLUMN pending.ticket IS 'Changes whenever the document does, so that a worker finishes only what it saw';
COMMENT ON COLUMN pending.claimed_by IS 'Process id of the claiming worker''s Postgres session';

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
