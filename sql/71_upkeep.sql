-- What is done for rerankers once none of their documents can be claimed, or all are done.

-- Whether triggers see what is usually written to a source. Logical replication fires none of those that see whole
-- statements, ENABLE ALWAYS or not.
CREATE OR REPLACE FUNCTION _fires_triggers(_source regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT _is_table(_source) AND NOT EXISTS (
        SELECT FROM pg_subscription_rel s WHERE s.srrelid IN (SELECT t.relid FROM _tables_of(_source) t (relid)))
$$;

-- What is to be done for a reranker of which nothing can be claimed. Writes that its triggers missed are looked for;
-- source and stored vectors are compared, a page at a time, as long as the whole takes no tenth of a second.
CREATE OR REPLACE FUNCTION _tend(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
DECLARE
    known setbacks;
BEGIN
    SELECT s.* INTO known FROM setbacks s WHERE s.reranker = _reranker.name ORDER BY s.until DESC LIMIT 1;
    IF known.until > clock_timestamp() THEN
        RETURN;
    END IF;
    PERFORM _followed(_reranker.name);
    PERFORM _follow_partitions(_reranker.name);
    IF known.missed_writes THEN
        PERFORM enqueue(_reranker.name);
    ELSIF clock_timestamp() < now() + interval '0.1 s' AND EXISTS (
        SELECT FROM generations g LEFT JOIN reconciliations c ON (c.reranker, c.generation) = (g.reranker, g.number)
        WHERE g.reranker = _reranker.name
          AND (c.whole_at IS NULL OR c.after_key IS NOT NULL OR c.whole_at < now()
            - CASE WHEN _fires_triggers(_reranker.source) THEN interval '10 minutes' ELSE interval '1 minute' END)) THEN
        PERFORM reconcile(_reranker.name);
    END IF;
    PERFORM _switch_when_complete(_reranker.name);
    PERFORM _refresh_words(_reranker, g, 0.1) FROM generations g WHERE g.reranker = _reranker.name;
    DELETE FROM setbacks s WHERE s.reranker = _reranker.name AND (s.missed_writes OR NOT EXISTS (
        SELECT FROM pending p WHERE (p.reranker, p.generation) = (s.reranker, s.generation) AND p.failed_at IS NULL));
EXCEPTION WHEN OTHERS THEN
    PERFORM _set_all_back(_reranker.name, SQLERRM, coalesce(known.missed_writes, false));
END
$$;

-- Whether documents of a generation wait; those are looked at first that others have not gone by.
CREATE OR REPLACE FUNCTION _is_waiting(_reranker text, _generation int) RETURNS boolean
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    start bigint := _queue_start(_reranker);
BEGIN
    PERFORM FROM pending p
    WHERE (p.reranker, p.generation) = (_reranker, _generation) AND p.failed_at IS NULL AND p.ticket >= start
    ORDER BY p.ticket LIMIT 1;
    IF NOT FOUND THEN
        PERFORM FROM pending p
        WHERE (p.reranker, p.generation) = (_reranker, _generation) AND p.failed_at IS NULL
        ORDER BY p.ticket LIMIT 1;
    END IF;
    RETURN FOUND;
END
$$;

-- Has the newest generation take over once nothing of it waits, in one transaction: a search sees the old generation
-- or the new one, whole. The old one is kept for rollback_reranker. Whoever can't have the lock soon leaves it to the
-- next.
CREATE OR REPLACE FUNCTION _switch_when_complete(_reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
DECLARE
    newest int := (_newest_generation(_reranker)).number;
BEGIN
    IF (_reranker(_reranker)).generation < newest AND NOT _is_waiting(_reranker, newest) THEN
        PERFORM FROM rerankers r WHERE r.name = _reranker AND r.generation < newest FOR UPDATE;
        IF FOUND THEN
            UPDATE rerankers r SET generation = newest WHERE r.name = _reranker;
            UPDATE generations g SET retired_at = now() WHERE g.reranker = _reranker AND g.number < newest;
        END IF;
    END IF;
    PERFORM _drop_retired(_reranker);
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

-- Searches hold their generation until their transaction ends. Waiting for one would make all new ones wait behind
-- us, so give up soon; whoever next finds the queue empty tries again. SECURITY DEFINER: a worker need not own the side
-- tables. It takes nothing from its caller but a name, and drops what is due.
CREATE OR REPLACE FUNCTION _drop_retired(_reranker text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
BEGIN
    DELETE FROM generations g USING rerankers r
    WHERE g.reranker = _reranker AND r.name = g.reranker AND g.retired_at + r.grace_period <= clock_timestamp();
    IF FOUND THEN
        PERFORM _drop_stale_side_tables(_reranker);
    END IF;
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;
REVOKE EXECUTE ON FUNCTION _drop_retired FROM PUBLIC;
