-- Writes that no trigger saw, found page by page: replication, disabled triggers, and what is no table.

CREATE TABLE IF NOT EXISTS reconciliations (
    reranker text NOT NULL,
    generation int NOT NULL,
    after_key text,
    whole_at timestamptz,
    PRIMARY KEY (reranker, generation),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
COMMENT ON TABLE reconciliations IS 'How far source and stored vectors have been compared';
COMMENT ON COLUMN reconciliations.after_key IS 'The last key compared; NULL before the first page';
COMMENT ON COLUMN reconciliations.whole_at IS 'When the last page of all was compared last';

-- Compares the next page of each generation, enqueues what is missing or of another text, and forgets vectors whose
-- document is gone. Returns whether all have come to their end, to start anew with the next call. A generation that
-- somebody else is comparing is left to them: idle workers never wait for each other.
CREATE OR REPLACE FUNCTION reconcile(reranker text, max_documents int DEFAULT 1000, anew boolean DEFAULT false)
RETURNS boolean
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$
DECLARE
    target rerankers := _followed(reranker);
    page reconciliations;
    left_over int := (SELECT count(*) FROM generations g WHERE g.reranker = target.name);
BEGIN
    PERFORM _check_source(target);
    PERFORM _follow_partitions(target.name);
    INSERT INTO reconciliations (reranker, generation)
    SELECT g.reranker, g.number FROM generations g
    WHERE g.reranker = target.name AND NOT EXISTS (
        SELECT FROM reconciliations c WHERE (c.reranker, c.generation) = (g.reranker, g.number))
    ON CONFLICT DO NOTHING;
    IF _is_table(target.source) AND EXISTS (
        SELECT FROM reconciliations c WHERE c.reranker = target.name AND c.after_key IS NULL) THEN
        PERFORM _complete_triggers(target);
    END IF;
    FOR page IN
        SELECT * FROM reconciliations c WHERE c.reranker = target.name ORDER BY c.generation FOR UPDATE SKIP LOCKED
    LOOP
        page.after_key := _reconcile_page(target, _generation(target.name, page.generation),
            CASE WHEN NOT anew THEN page.after_key END, max_documents);
        left_over := left_over - (page.after_key IS NULL)::int;
        UPDATE reconciliations c
        SET after_key = page.after_key, whole_at = CASE WHEN page.after_key IS NULL THEN now() ELSE c.whole_at END
        WHERE (c.reranker, c.generation) = (page.reranker, page.generation);
    END LOOP;
    RETURN left_over = 0;
END
$$;
COMMENT ON FUNCTION reconcile IS
    'Compares the next page of source and stored vectors, and enqueues what differs; returns whether it was the last';

-- The condition that a key of the source, d.key, or of a side table, s.key, is above the one and not above the other,
-- as the index there has it; NULL sets no bound.
CREATE OR REPLACE FUNCTION _within_sql(_key text, _reranker rerankers, _after text, _last text DEFAULT NULL)
RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT concat_ws(' AND ', 'true', (
        SELECT string_agg(CASE _key WHEN 'd.key'
            THEN format('(%s) %s (%s)', _parts(_reranker, _key), b.operator, _parts(_reranker, b.key))
            ELSE format('%s %s %s', _key, b.operator, b.key) END, ' AND ')
        FROM (VALUES ('>', _after), ('<=', _last)) g (operator, given),
            LATERAL (SELECT g.operator, format('%L::%s', g.given, _reranker.key_type) AS key) b
        WHERE g.given IS NOT NULL))
$$;

-- Compares the keys that follow the given one in source or side table; returns the last of them, NULL at the end.
CREATE OR REPLACE FUNCTION _reconcile_page(
    _reranker rerankers, _generation generations, _after text, _max_documents int) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    last_key text;
BEGIN
    EXECUTE format($sql$
        SELECT max(k.key::text) FILTER (WHERE k.place = $1) FROM (
            SELECT u.key, row_number() OVER (ORDER BY u.key) AS place FROM (
                (SELECT d.key FROM %s d WHERE %s LIMIT $1)
                UNION (SELECT s.key FROM %s s WHERE %s LIMIT $1)) u) k
        $sql$, _documents(_generation),
        _within_sql('d.key', _reranker, _after) || ' ORDER BY ' || _parts(_reranker, 'd.key'),
        _side_table(_generation), _within_sql('s.key', _reranker, _after) || ' ORDER BY s.key')
    INTO last_key USING _max_documents;
    PERFORM _check_keys(_reranker, format('SELECT d.key FROM %s d WHERE %s',
        _documents(_generation), _within_sql('d.key', _reranker, _after, last_key)));
    EXECUTE _forget_sql(_generation,
        _orphaned_keys_sql(_reranker, _generation) || ' AND ' || _within_sql('s.key', _reranker, _after, last_key));
    EXECUTE _enqueue_sql(_reranker.name, _generation.number,
        _stale_keys_sql(_generation, false) || ' AND ' || _within_sql('d.key', _reranker, _after, last_key));
    RETURN last_key;
END
$$;
