-- A generation's side tables: one of its documents, one of their passages with an embedding each, one for each tier of
-- token vectors, and those of words (43_words.sql). Beside them stands a function of the source's documents, as this
-- generation reads them.

-- A side table of a generation, quoted and with its schema: that of documents or, by kind, that of passages, tokens,
-- bits, words or terms.
CREATE OR REPLACE FUNCTION _side_table(_reranker text, _generation int, _kind text DEFAULT NULL) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank.%I', concat_ws('_', _reranker, _generation, _kind)) $$;

-- The same of a generation that is confined to one partition: that one's alone. Words are counted over all of them.
CREATE OR REPLACE FUNCTION _side_table(_generation generations, _kind text DEFAULT NULL) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT _side_table(_generation.reranker, _generation.number, nullif(concat_ws('_', CASE
        WHEN _kind IN ('terms', 'source') THEN NULL ELSE 'p' || _generation.partition END, _kind), ''))
$$;

-- The expression that yields a document's text search configuration.
CREATE OR REPLACE FUNCTION _config_sql(_generation generations) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _generation.language_expression IS NULL
        THEN format('%L::pg_catalog.text', _generation.text_search_config)
        ELSE format('pgrerank._config_of((%s)::pg_catalog.text, %L)',
            _generation.language_expression, _generation.text_search_config) END
$$;

-- The expression that yields a document's tenant.
CREATE OR REPLACE FUNCTION _tenant_sql(_generation generations) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT coalesce(quote_ident(_generation.tenant_column), 'NULL::pg_catalog.text') $$;

-- A generation's documents, to be read like a table: their key, their text as content, the text search configuration
-- by which it is cut into words, their tenant, and what models read in front of their passages.
CREATE OR REPLACE FUNCTION _documents(_generation generations) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT _side_table(_generation, 'source') || '()' $$;

-- The query for them, over the source or, as a trigger has it, some rows of it. Its types have their schema: policies
-- rest on it, and it is read with its caller's search_path, in which a temporary type may be called text.
CREATE OR REPLACE FUNCTION _documents_sql(
    _reranker rerankers, _generation generations, _rows text, _more text DEFAULT '') RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('SELECT %s AS key, (%s)::pg_catalog.text AS content, ', _key_of(_reranker, 's'),
            _generation.text_expression)
        || format('(%s)::pg_catalog.text AS config, %s AS tenant, (%s)::pg_catalog.text AS prefix',
            _config_sql(_generation), _tenant_sql(_generation), coalesce(_generation.passage_prefix, 'NULL'))
        || format('%s FROM %s s', _more, _rows)
$$;

-- In which partition a document is, where that is known of a generation's.
CREATE OR REPLACE FUNCTION _partition_column(_generation generations) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT CASE WHEN _generation.partitioned THEN ', partition int' ELSE '' END $$;

-- The type in which side tables have tenants: the column's, as it was when they were made.
CREATE OR REPLACE FUNCTION _stored_tenant_type(_reranker rerankers, _generation generations) RETURNS regtype
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN coalesce((
        SELECT a.atttypid FROM pg_attribute a
        WHERE a.attrelid = to_regclass(_side_table(_generation)) AND a.attname = 'tenant'),
        _tenant_type(_reranker.source, _generation));
END
$$;

-- What that function returns.
CREATE OR REPLACE FUNCTION _documents_type(_reranker rerankers, _generation generations) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('TABLE (key %s, content text, config text, tenant %s, prefix text%s)', _reranker.key_type,
        _stored_tenant_type(_reranker, _generation), _partition_column(_generation))
$$;

-- They come from a function that Postgres takes apart like a view, for it is of one query, without settings of its own.
-- It reads with the rights of whoever reads it. Unlike a view it leaves the source free: columns change their types,
-- and tables are dropped. A table's expressions are immutable and read nothing, hence safe in parallel.
CREATE OR REPLACE FUNCTION _create_documents(_reranker rerankers, _generation generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    documents text := _documents(_generation);
    query text := _documents_sql(_reranker, _generation, _qualified(_reranker.source),
            _partition_sql(_reranker, _generation))
        || format(' WHERE (SELECT pgrerank._is_current(%L))', _reranker.name);
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS %s ', documents, _documents_type(_reranker, _generation))
        || format('LANGUAGE sql STABLE %s AS %L',
            CASE WHEN _is_table(_reranker.source) THEN 'PARALLEL SAFE' END, query);
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', documents,
        format('Documents of reranker %s, as generation %s reads them', _reranker.name, _generation.number));
    EXECUTE format('ALTER FUNCTION %s OWNER TO %s', documents, _owner());
END
$$;

-- A query for those of a generation's documents that are still there, by their keys in $1. It holds them against
-- deletion until we commit, but for those that somebody has locked (see _postpone_locked). Only tables' can be. OFFSET
-- 0 has each looked up by its key: of a table that was never analyzed, the planner takes keys of several columns for
-- so many rows that it would read all of it.
CREATE OR REPLACE FUNCTION _alive_sql(_reranker rerankers, _generation generations) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _is_table(_reranker.source)
        THEN format('SELECT d.* FROM (SELECT %s AS key FROM %s s WHERE %s FOR KEY SHARE SKIP LOCKED) held, ',
                _key_of(_reranker, 's'), _reranker.source, _among(_reranker, _key_of(_reranker, 's'), '$1'))
            || format('LATERAL (SELECT * FROM %s d WHERE %s OFFSET 0) d',
                _documents(_generation), _same_key(_reranker, 'd.key', 'held.key'))
        ELSE format('SELECT d.* FROM %s d WHERE %s', _documents(_generation), _among(_reranker, 'd.key', '$1')) END
$$;

-- The tiers in which a generation keeps token vectors.
CREATE OR REPLACE FUNCTION _tiers(_generation generations) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT CASE WHEN _generation.token_bits THEN '{tokens,bits}'::text[] ELSE '{tokens}' END $$;

CREATE OR REPLACE FUNCTION _token_tables(_generation generations) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(_side_table(_generation, t.tier))
    FROM unnest(_tiers(_generation)) t (tier)
$$;

-- All that is stored by the key of a document.
CREATE OR REPLACE FUNCTION _keyed_tables(_generation generations) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT ARRAY[_side_table(_generation), _side_table(_generation, 'passages'), _side_table(_generation, 'words')]
        || _token_tables(_generation)
$$;

CREATE OR REPLACE FUNCTION _create_side_tables(_reranker rerankers, _generation generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    side_table text := _side_table(_generation);
    tier text;
BEGIN
    PERFORM _create_documents(_reranker, _generation);
    EXECUTE format($sql$
        CREATE TABLE %s (
            key %s,
            bounds int[],
            content_hash bytea NOT NULL,
            encoded_at timestamptz NOT NULL DEFAULT now(),
            tenant %s, %s
        $sql$, side_table, _reranker.key_type, _tenant_type(_reranker.source, _generation),
        _stored_by(_generation, 'key'));
    PERFORM _protect(side_table, _reranker, _generation,
        format('Encoded documents of reranker %s, generation %s', _reranker.name, _generation.number));
    PERFORM _create_passage_table(_reranker, _generation);
    PERFORM _create_words_tables(_reranker, _generation);
    FOREACH tier IN ARRAY _tiers(_generation) LOOP
        PERFORM _create_token_table(_reranker, _generation, tier);
    END LOOP;
    IF _generation.partitioned THEN
        PERFORM _follow_partitions(_reranker.name);
        PERFORM _create_partitions(_reranker, _generation);
    END IF;
END
$$;

-- The passages of documents, by numbers that tell them apart within one. `hash` names what models have read of each,
-- and `cut_hash` that stretch of the text itself. Where passages stand in their document is in that one's `bounds`.
CREATE OR REPLACE FUNCTION _create_passage_table(_reranker rerankers, _generation generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    passage_table text := _side_table(_generation, 'passages');
    dims int;
BEGIN
    IF _reranker.embedding_column IS NULL AND _generation.embedding_model IS NOT NULL THEN
        dims := (_model(_generation.embedding_model, 'embedding')).dims;
    END IF;
    EXECUTE format('CREATE TABLE %s (key %s, passage int, embedding halfvec%s, hash bytea NOT NULL, ',
            passage_table, _reranker.key_type, '(' || dims || ')')
        || format('cut_hash bytea NOT NULL, tenant %s, %s',
            _tenant_type(_reranker.source, _generation), _stored_by(_generation, 'key, passage'));
    IF _generation.tenant_column IS NOT NULL THEN
        EXECUTE format('CREATE INDEX ON %s (tenant)', passage_table);
    END IF;
    IF dims IS NOT NULL THEN
        EXECUTE format('CREATE INDEX ON %s USING hnsw (embedding %s)', passage_table,
            _operator_class(_reranker.distance));
    END IF;
    PERFORM _protect(passage_table, _reranker, _generation,
        format('Passages of reranker %s, generation %s, with their embeddings', _reranker.name, _generation.number));
END
$$;

-- A passage's token vectors in parts that fit a page: read in place, they cost half of what TOAST's pieces of 2 kB do.
CREATE OR REPLACE FUNCTION _create_token_table(_reranker rerankers, _generation generations, _tier text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    token_table text := _side_table(_generation, _tier);
BEGIN
    EXECUTE format($sql$
        CREATE TABLE %s (key %s, passage int, part int, tokens bytea NOT NULL, %s
        $sql$, token_table, _reranker.key_type, _stored_by(_generation, 'key, passage, part', _tier));
    EXECUTE format('ALTER TABLE %s ALTER COLUMN tokens SET STORAGE EXTERNAL', token_table);
    PERFORM _protect(token_table, _reranker, _generation, format('Token vectors of reranker %s, generation %s, in %s',
        _reranker.name, _generation.number, CASE _tier WHEN 'bits' THEN 'bit' ELSE _generation.token_precision END));
END
$$;

-- The source, for a policy: by its number, which doesn't depend on it, and no row once it has been dropped.
CREATE OR REPLACE FUNCTION _source_sql(_reranker rerankers) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('(SELECT c.oid FROM pg_class c JOIN pgrerank.rerankers r ON r.source = c.oid WHERE r.name = %L)',
        _reranker.name)
$$;

-- The roles that grant_worker has let at the queue.
CREATE OR REPLACE FUNCTION _worker_roles() RETURNS SETOF regrole
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT DISTINCT a.grantee::regrole FROM pg_class c, aclexplode(c.relacl) a
    WHERE c.oid = 'pgrerank.pending'::regclass AND a.privilege_type = 'UPDATE'
      AND a.grantee NOT IN (0, c.relowner)
$$;

CREATE OR REPLACE FUNCTION _grant_side_table(_table text, _role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s', _table, _role);
END
$$;

-- Makes a side table visible exactly to those who may read the text in the source, for vectors can be inverted to text.
-- Whom no row-level security restricts there is spared the look-up of each row, but for views and foreign tables, which
-- may hide rows by other means; naming the documents at all has the grants checked. OFFSET 0 keeps the planner from
-- hashing the whole source, and has it look up the keys that a search reads.
CREATE OR REPLACE FUNCTION _protect(_table text, _reranker rerankers, _generation generations, _comment text)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', _table);
    EXECUTE format($sql$
        CREATE POLICY visible_with_source ON %s FOR SELECT
        USING (%s EXISTS (SELECT d.content FROM %s d WHERE %s OFFSET 0))
        $sql$, _table, CASE WHEN _is_table(_reranker.source)
            THEN format('(SELECT NOT row_security_active(s.oid) FROM %s s) OR', _source_sql(_reranker)) ELSE '' END,
        _documents(_generation), _same_key(_reranker, 'd.key', _table || '.key'));
    EXECUTE format('GRANT SELECT ON %s TO PUBLIC', _table);
    PERFORM _grant_side_table(_table, w.role) FROM _worker_roles() w (role);
    EXECUTE format('COMMENT ON TABLE %s IS %L', _table, _comment);
    EXECUTE format('ALTER TABLE %s OWNER TO %s', _table, _owner());
END
$$;

-- Holds a generation's tables against being dropped until the transaction ends; returns whether they are there. To be
-- called before rows of the queue are locked, for whoever drops the tables deletes these after; or without waiting.
CREATE OR REPLACE FUNCTION _hold(_generation generations, _may_wait boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE %s', _side_table(_generation),
        CASE WHEN NOT _may_wait THEN 'NOWAIT' END);
    RETURN true;
EXCEPTION WHEN undefined_table THEN
    RETURN false;
END
$$;

-- Has a reranker's side tables and its source, if that is a table, to itself. Others lock them in either order, so all
-- are taken soon, or none and all again.
CREATE OR REPLACE FUNCTION _have_alone(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    tables text := (
        SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid <> _reranker.source, c.relname) FROM pg_class c
        WHERE (c.oid = _reranker.source AND _is_table(_reranker.source)) OR c.oid IN (
            SELECT t.name::regclass FROM generations g, unnest(_keyed_tables(g)) t (name)
            WHERE g.reranker = _reranker.name AND to_regclass(t.name) IS NOT NULL));
BEGIN
    WHILE tables IS NOT NULL LOOP
        BEGIN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', tables);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > started + interval '1 minute' THEN
                RAISE;
            END IF;
        END;
        PERFORM pg_sleep(0.05 * random());
    END LOOP;
END
$$;

-- Drops the side tables that no generation has, that of the documents first, and then the functions that their
-- policies call.
CREATE OR REPLACE FUNCTION _drop_stale_side_tables(_reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    stale record;
BEGIN
    FOR stale IN
        SELECT o.kind, o.name FROM (
            SELECT 1 AS place, 'TABLE' AS kind, c.relname AS name FROM pg_class c
            WHERE c.relnamespace = 'pgrerank'::regnamespace AND c.relkind IN ('r', 'p')
            UNION ALL
            SELECT 2, 'FUNCTION', p.proname FROM pg_proc p WHERE p.pronamespace = 'pgrerank'::regnamespace) o
        WHERE o.name ~ ('^' || _reranker || '_\d+(_passages|_tokens|_bits|_words|_terms|_source)?$')
          AND NOT EXISTS (
            SELECT FROM generations g
            WHERE g.reranker || '_' || g.number
                = regexp_replace(o.name, '_(passages|tokens|bits|words|terms|source)$', ''))
        ORDER BY o.place, o.name
    LOOP
        EXECUTE format('DROP %s IF EXISTS pgrerank.%I', stale.kind, stale.name);
    END LOOP;
END
$$;

-- A statement that deletes what is stored of the documents whose keys, in the source's own type, a query yields, and
-- takes them off the queue. It is text for the reason given at _enqueue_sql.
CREATE OR REPLACE FUNCTION _forget_sql(_generation generations, _keys_query text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format($sql$
        WITH gone AS MATERIALIZED (%1$s), %2$s
        DELETE FROM pending p WHERE p.ctid = ANY (ARRAY(
            SELECT q.ctid FROM gone, LATERAL (
                SELECT w.ctid FROM pending w
                WHERE (w.reranker, w.generation, w.key) = (%3$L, %4$s, gone.key::text) FOR UPDATE) q))
        $sql$, _keys_query, string_agg(
            format('deleted_%s AS (DELETE FROM %s s USING gone WHERE s.key = gone.key)', t.place, t.name),
            ', ' ORDER BY t.place), _generation.reranker, _generation.number)
    FROM unnest(_keyed_tables(_generation)) WITH ORDINALITY t (name, place)
$$;
