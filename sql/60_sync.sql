-- Source table to queue: statement-level triggers with transition tables, so that a bulk statement costs one statement.

CREATE OR REPLACE FUNCTION _trigger_name(_reranker text, _event text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank_%s_%s', _reranker, _event) $$;

CREATE OR REPLACE FUNCTION _create_triggers(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    event record;
BEGIN
    FOR event IN SELECT * FROM (VALUES
        ('insert', 'REFERENCING NEW TABLE AS new_rows'),
        ('update', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'),
        ('delete', 'REFERENCING OLD TABLE AS old_rows'),
        ('truncate', '')) e (name, tables)
        WHERE _is_table(_reranker.source)
    LOOP
        EXECUTE format('CREATE TRIGGER %I AFTER %s ON %s ', _trigger_name(_reranker.name, event.name), event.name,
                _reranker.source)
            || format('%s FOR EACH STATEMENT EXECUTE FUNCTION pgrerank._sync(%L)', event.tables, _reranker.name);
    END LOOP;
END
$$;

-- Where the source has been dropped, its triggers have gone with it.
CREATE OR REPLACE FUNCTION _drop_triggers(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    trigger_name text;
BEGIN
    FOR trigger_name IN
        SELECT t.tgname FROM pg_trigger t JOIN unnest('{insert,update,delete,truncate}'::text[]) e (event)
            ON t.tgname = _trigger_name(_reranker.name, e.event)
        WHERE t.tgrelid = _reranker.source AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', trigger_name, _reranker.source);
    END LOOP;
END
$$;

-- SECURITY DEFINER: who writes documents needs no right on the queue. It reads transition tables and our own tables
-- only. Keys are written alike whatever the session's settings. Whatever goes wrong, a column that has another name since, say, or a side table that is locked, the write goes
-- on: a worker looks for what was missed.
CREATE OR REPLACE FUNCTION _sync() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '1s' SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$
DECLARE
    reranker rerankers;
    key_column name;
    generation generations;
BEGIN
    reranker := _reranker(TG_ARGV[0]);
    key_column := reranker.key_column;
    FOR generation IN SELECT * FROM generations g WHERE g.reranker = reranker.name ORDER BY g.number LOOP
        CASE TG_OP
        WHEN 'INSERT' THEN
            EXECUTE _enqueue_sql(reranker.name, generation.number,
                format('SELECT n.%I::text AS key FROM new_rows n', key_column));
        WHEN 'UPDATE' THEN
            EXECUTE _enqueue_sql(reranker.name, generation.number, _changed_keys_sql(reranker, generation));
            EXECUTE _forget_sql(generation, format($sql$
                SELECT o.%1$I AS key FROM old_rows o
                WHERE NOT EXISTS (SELECT FROM new_rows n WHERE n.%1$I = o.%1$I)
                $sql$, key_column));
        WHEN 'DELETE' THEN
            EXECUTE _forget_sql(generation, format('SELECT o.%I AS key FROM old_rows o', key_column));
        WHEN 'TRUNCATE' THEN
            EXECUTE 'TRUNCATE ' || array_to_string(_keyed_tables(generation), ', ');
            DELETE FROM pending p WHERE (p.reranker, p.generation) = (reranker.name, generation.number);
        END CASE;
    END LOOP;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM _set_all_back(
        TG_ARGV[0], format('after %s of %s: %s', lower(TG_OP), TG_RELID::regclass, SQLERRM), true);
    RETURN NULL;
END
$$;

-- The generation's view as a query over other rows of the source: Postgres keeps a view's columns by number, so that it
-- follows those that have another name since.
CREATE OR REPLACE FUNCTION _documents_among(_reranker rerankers, _generation generations, _rows text) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT left(pg_get_viewdef(_documents(_generation)::regclass), -length(format('%s s;', _reranker.source)))
        || _rows || ' s'
$$;

-- A query for the keys of updated rows that are new or have another text, its language or its tenant than before.
CREATE OR REPLACE FUNCTION _changed_keys_sql(_reranker rerankers, _generation generations) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format($sql$
        SELECT n.key::text
        FROM (%s) n LEFT JOIN (%s) o USING (key)
        WHERE o.key IS NULL OR (n.content, n.config, n.tenant) IS DISTINCT FROM (o.content, o.config, o.tenant)
        $sql$, _documents_among(_reranker, _generation, 'new_rows'),
        _documents_among(_reranker, _generation, 'old_rows'))
$$;

-- Enqueues the documents whose stored vectors are missing or made from another text, forgets vectors whose document is
-- gone, and returns how many wait. With retry_failed, documents that failed get their tries again. To a role that
-- row-level security hides documents from, they would seem gone: row_security = off makes that an error.
CREATE OR REPLACE FUNCTION enqueue(reranker text, retry_failed boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$
DECLARE
    target rerankers := _reranker(reranker);
    generation generations;
BEGIN
    target.key_column := _follow_key(target);
    FOR generation IN SELECT * FROM generations g WHERE g.reranker = target.name ORDER BY g.number LOOP
        EXECUTE _forget_sql(generation, _orphaned_keys_sql(target, generation));
        EXECUTE _enqueue_sql(target.name, generation.number, _stale_keys_sql(generation, retry_failed));
    END LOOP;
    RETURN (SELECT count(*) FROM pending p WHERE p.reranker = target.name AND p.failed_at IS NULL);
END
$$;
COMMENT ON FUNCTION enqueue IS
    'Enqueues whatever is not encoded or out of date; returns how many documents wait';

-- The key's name in the source, which may be another since, and is kept.
CREATE OR REPLACE FUNCTION _follow_key(_reranker rerankers) RETURNS name
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    present name := _reranker.key_column;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = _reranker.source AND a.attname = _reranker.key_column AND NOT a.attisdropped) THEN
        present := (_source_key(_reranker.source, NULL)).key_column;
        UPDATE rerankers r SET key_column = present WHERE r.name = _reranker.name;
    END IF;
    RETURN present;
END
$$;

-- A query for the keys of stored vectors whose document is gone.
CREATE OR REPLACE FUNCTION _orphaned_keys_sql(_reranker rerankers, _generation generations) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('SELECT s.key FROM %s s WHERE NOT EXISTS (SELECT FROM %s d WHERE d.%I = s.key)',
        _side_table(_generation), _reranker.source, _reranker.key_column)
$$;

-- A query for the keys of documents whose vectors are missing, or of another text or tenant, and that are not enqueued.
CREATE OR REPLACE FUNCTION _stale_keys_sql(_generation generations, _retry_failed boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format($sql$
        SELECT d.key::text
        FROM %1$s d LEFT JOIN %2$s s ON s.key = d.key
        WHERE (s.content_hash IS DISTINCT FROM _content_hash(d.content) OR s.tenant IS DISTINCT FROM d.tenant)
          AND NOT EXISTS (
            SELECT FROM pending p
            WHERE (p.reranker, p.generation, p.key) = (%3$s, d.key::text) AND (p.failed_at IS NULL OR NOT %4$L))
        $sql$, _documents(_generation), _side_table(_generation),
        format('%L, %s', _generation.reranker, _generation.number), _retry_failed)
$$;
