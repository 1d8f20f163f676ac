-- What a source table offers: its name, its columns, its key, an embedding column.

-- The table's name with its schema, as it would be written in SQL.
CREATE OR REPLACE FUNCTION _qualified(_source regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = _source
$$;

-- The same of a type, without a length: a literal of it is as long as it is.
CREATE OR REPLACE FUNCTION _qualified_type(_type regtype) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('%I.%I', n.nspname, t.typname) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE t.oid = _type
$$;

-- Whether a relation is a table, partitioned or not: writes to it fire triggers, and its rows can be held. Views,
-- materialized views and foreign tables are read again from time to time instead.
CREATE OR REPLACE FUNCTION _is_table(_source regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = _source AND c.relkind IN ('r', 'p')) $$;

-- Names a relation in an error.
CREATE OR REPLACE FUNCTION _described(_source regclass) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('%s %s', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view'
        WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'relation' END, _source)
    FROM pg_class c WHERE c.oid = _source
$$;

-- Returns the type of a column, or raises an error that says which columns there are.
CREATE OR REPLACE FUNCTION _column_type(_source regclass, _column text, OUT type regtype, OUT typmod int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT a.atttypid, a.atttypmod INTO type, typmod
    FROM pg_attribute a
    WHERE a.attrelid = _source AND a.attname = _column AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        PERFORM _raise('undefined_column', format('table %s has no column "%s"', _source, _column), (
            SELECT format('It has: %s.', string_agg(a.attname, ', ' ORDER BY a.attnum))
            FROM pg_attribute a WHERE a.attrelid = _source AND a.attnum > 0 AND NOT a.attisdropped));
    END IF;
END
$$;

-- What a source is called, and the names and types of its columns by their numbers; NULL where it has been dropped.
CREATE OR REPLACE FUNCTION _names_of(_source regclass) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT jsonb_build_object('oid', _source::oid::bigint, 'table', _qualified(_source),
        'columns', jsonb_object_agg(a.attnum, a.attname),
        'types', jsonb_object_agg(a.attnum, a.atttypid::regtype))
    FROM pg_attribute a WHERE a.attrelid = _source AND a.attnum > 0 AND NOT a.attisdropped
    HAVING count(*) > 0
$$;

-- The columns of a table's primary key.
CREATE OR REPLACE FUNCTION _primary_key(_source regclass) RETURNS text[]
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(a.attname::text ORDER BY a.attnum)
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = _source AND i.indisprimary
$$;

-- The type of a key, as side tables and statements have it: a domain's own, without a length.
CREATE OR REPLACE FUNCTION _key_type(_source regclass, _column text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    of_type regtype := (_column_type(_source, _column)).type;
    found pg_type;
BEGIN
    SELECT * INTO found FROM pg_type t WHERE t.oid = of_type;
    WHILE found.typtype = 'd' LOOP
        SELECT * INTO found FROM pg_type t WHERE t.oid = found.typbasetype;
    END LOOP;
    IF found.typnamespace = 'pg_catalog'::regnamespace AND found.typname IN ('int8', 'int4', 'int2', 'numeric', 'uuid',
        'text', 'varchar', 'bpchar', 'date', 'timestamp', 'timestamptz') THEN
        RETURN format_type(found.oid, -1);
    ELSIF found.typname = 'citext' AND pg_type_is_visible(found.oid) THEN
        RETURN format('%I.citext', found.typnamespace::regnamespace);
    END IF;
    PERFORM _raise('datatype_mismatch', format('key %s.%I is of type %s: pgrerank wants bigint, integer, smallint, '
        'numeric, uuid, text, varchar, char, date, timestamp, timestamptz or citext', _source, _column, of_type),
        CASE WHEN found.typname = 'citext'
            THEN 'Its operators are looked for beside pgvector''s: ALTER EXTENSION citext SET SCHEMA …;' END);
END
$$;

-- The source's key: the column declared, or else the only one of its primary key. Raises an error that says what is in
-- the way.
CREATE OR REPLACE FUNCTION _source_key(_source regclass, _declared text, OUT key_column name, OUT key_type text)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    columns text[] := _primary_key(_source);
    hint text := 'Name a column that tells its rows apart: key_column => ''id''.';
BEGIN
    IF NOT _is_table(_source) AND _described(_source) LIKE 'relation %' THEN
        PERFORM _raise('wrong_object_type', format('%s is neither a table nor a view', _source));
    ELSIF (SELECT c.relpersistence = 't' FROM pg_class c WHERE c.oid = _source) THEN
        PERFORM _raise('wrong_object_type', format('%s is temporary: no worker and no other session can read it',
            _described(_source)), 'Name a table that stays.');
    ELSIF _declared IS NULL AND columns IS NULL THEN
        PERFORM _raise('invalid_table_definition', format('%s has no primary key', _described(_source)),
            CASE WHEN _is_table(_source) THEN format('Add one: ALTER TABLE %s ADD PRIMARY KEY (...); or name a column '
                'that is unique and not null: key_column => ''id''.', _source) ELSE hint END);
    ELSIF _declared IS NULL AND cardinality(columns) > 1 THEN
        PERFORM _raise('feature_not_supported',
            format('table %s has a composite primary key (%s): pgrerank wants one of a single column',
                _source, array_to_string(columns, ', ')),
            'Name a column that is unique and not null, a bigint identity for example: key_column => ''id''.');
    END IF;
    key_column := coalesce(_declared, columns[1]);
    key_type := _key_type(_source, key_column);
    IF _is_table(_source) AND columns IS DISTINCT FROM ARRAY[key_column::text] THEN
        PERFORM _check_unique(_source, key_column);
    END IF;
END
$$;

-- Raises an error unless a table's column is unique and not null.
CREATE OR REPLACE FUNCTION _check_unique(_source regclass, _column text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    key pg_attribute;
BEGIN
    SELECT * INTO key FROM pg_attribute a WHERE a.attrelid = _source AND a.attname = _column;
    IF NOT key.attnotnull OR NOT EXISTS (
        SELECT FROM pg_index i
        WHERE i.indrelid = _source AND i.indnkeyatts = 1 AND i.indkey[0] = key.attnum
          AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL) THEN
        PERFORM _raise('invalid_table_definition', format('key_column %s.%I is %s', _source, _column,
                CASE WHEN key.attnotnull THEN 'not unique' ELSE 'not declared NOT NULL' END),
            format('Make it a key: ALTER TABLE %1$s ADD UNIQUE (%2$I), ALTER COLUMN %2$I SET NOT NULL;',
                _source, _column));
    END IF;
END
$$;

-- Raises an error where keys, which a query yields, of a relation that can't declare them are none.
CREATE OR REPLACE FUNCTION _check_keys(_reranker rerankers, _keys text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    broken record;
BEGIN
    IF NOT _is_table(_reranker.source) THEN
        EXECUTE format($sql$
            SELECT k.key::text AS key, count(*) AS times FROM (%s) k (key)
            GROUP BY k.key HAVING count(*) > 1 OR k.key IS NULL LIMIT 1
            $sql$, _keys) INTO broken;
        IF broken.times > 0 THEN
            PERFORM _raise('unique_violation', format('key_column %I of %s is no key: %s comes %s times',
                _reranker.key_column, _described(_reranker.source), coalesce(quote_literal(broken.key), 'NULL'),
                broken.times));
        END IF;
    END IF;
END
$$;

-- The same of all its keys, and of those that a search has found.
CREATE OR REPLACE FUNCTION _check_all_keys(_reranker rerankers) RETURNS void
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT _check_keys(_reranker, format('SELECT s.%I FROM %s s', _reranker.key_column, _reranker.source))
$$;
CREATE OR REPLACE FUNCTION _check_found_keys(_reranker rerankers, _keys text[], _passages int[] DEFAULT NULL)
RETURNS void
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT _check_keys(_reranker, format('SELECT unnest(%L::text[])', _keys))
    WHERE CASE WHEN NOT _is_table(_reranker.source) THEN cardinality(_keys) > (
        SELECT count(DISTINCT (k.key, k.passage)) FROM unnest(_keys, _passages) k (key, passage)) END
$$;

-- Returns type and dimensions of the user's own embedding column; a query vector must have as many.
CREATE OR REPLACE FUNCTION _embedding_column(_source regclass, _column text, OUT type text, OUT dims int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT c.type::text, c.typmod INTO type, dims FROM _column_type(_source, _column) c
    WHERE c.type IN ('vector'::regtype, 'halfvec'::regtype);
    IF NOT FOUND THEN
        PERFORM _raise('datatype_mismatch', format('column %s.%I is of type %s: vector(n) or halfvec(n) expected',
            _source, _column, (_column_type(_source, _column)).type));
    ELSIF dims < 0 THEN
        PERFORM _raise('datatype_mismatch', format('column %s.%I is a %s without dimensions', _source, _column, type),
            format('Say them: ALTER TABLE %s ALTER COLUMN %I TYPE %s(n);', _source, _column, type));
    END IF;
END
$$;
