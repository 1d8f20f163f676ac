-- Source table to queue: statement-level triggers with transition tables, so that a bulk statement costs one statement.

CREATE OR REPLACE FUNCTION _trigger_name(_reranker text, _event text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank_%s_%s', _reranker, _event) $$;

-- A table and all below it: partitions, which fire triggers of their own where they are written to by name, and tables
-- that inherit from it.
CREATE OR REPLACE FUNCTION _tables_of(_source regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    WITH RECURSIVE tree AS (
        SELECT _source::oid AS relid
        UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relid)
    SELECT t.relid::regclass FROM tree t WHERE _is_table(t.relid)
$$;

-- What a source's triggers see of each statement, by event.
CREATE OR REPLACE FUNCTION _events() RETURNS TABLE (event text, tables text)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    VALUES ('insert', 'REFERENCING NEW TABLE AS new_rows'),
        ('update', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'),
        ('delete', 'REFERENCING OLD TABLE AS old_rows'),
        ('truncate', '')
$$;

CREATE OR REPLACE FUNCTION _create_triggers(_reranker rerankers, _table regclass) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    missing record;
BEGIN
    FOR missing IN
        SELECT e.* FROM _events() e
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger t
            WHERE t.tgrelid = _table AND t.tgname = _trigger_name(_reranker.name, e.event))
    LOOP
        EXECUTE format('CREATE TRIGGER %I AFTER %s ON %s ', _trigger_name(_reranker.name, missing.event),
                missing.event, _table)
            || format('%s FOR EACH STATEMENT EXECUTE FUNCTION pgrerank._sync(%L)', missing.tables, _reranker.name);
    END LOOP;
END
$$;

-- Gives triggers to the partitions that have none yet, as far as the role may and nobody has them locked, and takes
-- them from those that were detached.
CREATE OR REPLACE FUNCTION _complete_triggers(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
DECLARE
    part regclass;
BEGIN
    FOR part IN
        SELECT p.part FROM _tables_of(_reranker.source) p (part) WHERE has_table_privilege(p.part, 'TRIGGER')
    LOOP
        BEGIN
            PERFORM _create_triggers(_reranker, part);
        EXCEPTION WHEN lock_not_available THEN
            CONTINUE;
        END;
    END LOOP;
    FOR part IN
        SELECT t.part FROM _triggered(_reranker) t (part)
        WHERE t.part NOT IN (SELECT p.part FROM _tables_of(_reranker.source) p (part))
    LOOP
        BEGIN
            PERFORM _drop_triggers(_reranker, part);
        EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN
            CONTINUE;
        END;
    END LOOP;
END
$$;

-- The tables that have a reranker's triggers.
CREATE OR REPLACE FUNCTION _triggered(_reranker rerankers) RETURNS SETOF regclass
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT DISTINCT t.tgrelid::regclass FROM pg_trigger t JOIN _events() e
        ON t.tgname = _trigger_name(_reranker.name, e.event)
    WHERE t.tgfoid = to_regproc('pgrerank._sync')
$$;

CREATE OR REPLACE FUNCTION _drop_triggers(_reranker rerankers, _table regclass) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    event text;
BEGIN
    FOR event IN SELECT e.event FROM _events() e LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', _trigger_name(_reranker.name, event), _table);
    END LOOP;
END
$$;

-- Whether a table is below another.
CREATE OR REPLACE FUNCTION _is_below(_table regclass, _source regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    WITH RECURSIVE above AS (
        SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = _table
        UNION SELECT i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.inhparent)
    SELECT EXISTS (SELECT FROM above a WHERE a.inhparent = _source)
$$;

-- SECURITY DEFINER: who writes documents needs no right on the queue. It reads transition tables and our own tables
-- only, of the source or of a partition that was written to by name; what a TRUNCATE of one of these took is left for
-- reconciliation to find. Keys are written alike whatever the session's settings. Whatever goes wrong, a side table
-- that is locked, say, the write goes on: a worker looks for what was missed.
CREATE OR REPLACE FUNCTION _sync() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '1s' SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$
DECLARE
    reranker rerankers;
    generation generations;
BEGIN
    reranker := _followed(TG_ARGV[0]);
    IF TG_RELID <> reranker.source AND NOT _is_below(TG_RELID, reranker.source) THEN
        RETURN NULL;
    END IF;
    FOR generation IN SELECT * FROM generations g WHERE g.reranker = reranker.name ORDER BY g.number LOOP
        BEGIN
            CASE TG_OP
            WHEN 'INSERT' THEN
                EXECUTE _enqueue_sql(reranker.name, generation.number,
                    format('SELECT (%s)::text AS key FROM new_rows n', _key_of(reranker, 'n')));
            WHEN 'UPDATE' THEN
                EXECUTE _enqueue_sql(reranker.name, generation.number, _changed_keys_sql(reranker, generation));
                EXECUTE _forget_sql(generation, format($sql$
                    SELECT %s AS key FROM old_rows o WHERE NOT EXISTS (SELECT FROM new_rows n WHERE %s)
                    $sql$, _key_of(reranker, 'o'),
                    _same_key(reranker, _key_of(reranker, 'n'), _key_of(reranker, 'o'))));
            WHEN 'DELETE' THEN
                EXECUTE _forget_sql(generation, format('SELECT %s AS key FROM old_rows o', _key_of(reranker, 'o')));
            WHEN 'TRUNCATE' THEN
                IF TG_RELID <> reranker.source THEN
                    UPDATE reconciliations c SET after_key = NULL, whole_at = NULL
                    WHERE (c.reranker, c.generation) = (reranker.name, generation.number);
                    CONTINUE;
                END IF;
                EXECUTE 'TRUNCATE ' || array_to_string(_keyed_tables(generation), ', ');
                DELETE FROM pending p WHERE (p.reranker, p.generation) = (reranker.name, generation.number);
            END CASE;
        EXCEPTION WHEN OTHERS THEN
            PERFORM _set_back(reranker.name, generation.number,
                format('after %s of %s: %s', lower(TG_OP), TG_RELID::regclass, SQLERRM), true);
        END;
    END LOOP;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    PERFORM _set_all_back(
        TG_ARGV[0], format('after %s of %s: %s', lower(TG_OP), TG_RELID::regclass, SQLERRM), true);
    RETURN NULL;
END
$$;

-- Nobody puts it on a table of their own.
REVOKE EXECUTE ON FUNCTION _sync FROM PUBLIC;

-- A query for the keys of updated rows that are new or have another text, language, tenant or prefix than before.
CREATE OR REPLACE FUNCTION _changed_keys_sql(_reranker rerankers, _generation generations) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format($sql$
        SELECT n.key::text
        FROM (%s) n LEFT JOIN (%s) o ON %s
        WHERE o.key IS NULL OR (n.content, n.config, n.tenant, n.prefix)
            IS DISTINCT FROM (o.content, o.config, o.tenant, o.prefix)
        $sql$, _documents_sql(_reranker, _generation, 'new_rows'),
        _documents_sql(_reranker, _generation, 'old_rows'), _same_key(_reranker, 'n.key', 'o.key'))
$$;

-- Enqueues the documents whose stored vectors are missing or made from another text, forgets vectors whose document is
-- gone, and returns how many wait. With retry_failed, documents that failed get their tries again. To a role that
-- row-level security hides documents from, they would seem gone: row_security = off makes that an error. An error of an
-- older generation, which can't be read any more, is kept for that one.
CREATE OR REPLACE FUNCTION enqueue(reranker text, retry_failed boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$
DECLARE
    target rerankers := _followed(reranker);
    newest int := (_newest_generation(target.name)).number;
    generation generations;
BEGIN
    PERFORM _check_source(target);
    PERFORM _check_all_keys(target);
    PERFORM _follow_partitions(target.name);
    FOR generation IN SELECT * FROM generations g WHERE g.reranker = target.name ORDER BY g.number LOOP
        BEGIN
            EXECUTE _forget_sql(generation, _orphaned_keys_sql(target, generation));
            EXECUTE _enqueue_sql(target.name, generation.number, _stale_keys_sql(generation, retry_failed));
        EXCEPTION WHEN OTHERS THEN
            IF generation.number = newest THEN
                RAISE;
            END IF;
            PERFORM _set_back(target.name, generation.number, SQLERRM);
        END;
    END LOOP;
    RETURN (SELECT count(*) FROM pending p WHERE p.reranker = target.name AND p.failed_at IS NULL);
END
$$;
COMMENT ON FUNCTION enqueue IS
    'Enqueues whatever is not encoded or out of date; returns how many documents wait';

-- A query for the keys of stored vectors whose document is gone.
CREATE OR REPLACE FUNCTION _orphaned_keys_sql(_reranker rerankers, _generation generations) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('SELECT s.key FROM %s s WHERE NOT EXISTS (SELECT FROM %s d WHERE %s)',
        _side_table(_generation), _reranker.source, _same_key(_reranker, _key_of(_reranker, 'd'), 's.key'))
$$;

-- A query for the keys of documents whose vectors are missing, or of another text or tenant, and that are not enqueued.
CREATE OR REPLACE FUNCTION _stale_keys_sql(_generation generations, _retry_failed boolean) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format($sql$
        SELECT d.key::text
        FROM %1$s d LEFT JOIN %2$s s ON s.key = d.key
        WHERE (s.content_hash IS DISTINCT FROM _content_hash(d.content, d.prefix)
            OR s.tenant IS DISTINCT FROM d.tenant)
          AND NOT EXISTS (
            SELECT FROM pending p
            WHERE (p.reranker, p.generation, p.key) = (%3$s, d.key::text) AND (p.failed_at IS NULL OR NOT %4$L))
        $sql$, _documents(_generation), _side_table(_generation),
        format('%L, %s', _generation.reranker, _generation.number), _retry_failed)
$$;
