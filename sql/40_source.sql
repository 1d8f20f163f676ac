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

-- The columns of a table's primary key, as its index has them.
CREATE OR REPLACE FUNCTION _primary_key(_source regclass) RETURNS text[]
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum))
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = _source AND i.indisprimary
$$;

-- The type of a column of a key, as side tables and statements have it: a domain's own, without a length.
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

-- The source's key: the columns declared, or else those of its primary key. Raises an error that says what is in the
-- way.
CREATE OR REPLACE FUNCTION _source_key(_source regclass, _declared text[]) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    columns text[] := _primary_key(_source);
    hint text := 'Name the columns that tell its rows apart: key_columns => ''{id}''.';
BEGIN
    IF NOT _is_table(_source) AND _described(_source) LIKE 'relation %' THEN
        PERFORM _raise('wrong_object_type', format('%s is neither a table nor a view', _source));
    ELSIF (SELECT c.relpersistence = 't' FROM pg_class c WHERE c.oid = _source) THEN
        PERFORM _raise('wrong_object_type', format('%s is temporary: no worker and no other session can read it',
            _described(_source)), 'Name a table that stays.');
    ELSIF _declared IS NULL AND columns IS NULL THEN
        PERFORM _raise('invalid_table_definition', format('%s has no primary key', _described(_source)),
            CASE WHEN _is_table(_source) THEN format('Add one: ALTER TABLE %s ADD PRIMARY KEY (...); or name columns '
                'that are unique and not null: key_columns => ''{id}''.', _source) ELSE hint END);
    ELSIF cardinality(_declared) NOT BETWEEN 1 AND 32
        OR cardinality(_declared) > (SELECT count(DISTINCT d.name) FROM unnest(_declared) d (name)) THEN
        PERFORM _raise('invalid_parameter_value',
            format('key_columns is %L, expected 1 to 32 columns, each once', _declared), hint);
    END IF;
    IF _is_table(_source) AND columns IS DISTINCT FROM coalesce(_declared, columns) THEN
        PERFORM _check_unique(_source, _declared);
    END IF;
    RETURN coalesce(_declared, columns);
END
$$;

-- Raises an error unless columns of a table are unique together, and not null.
CREATE OR REPLACE FUNCTION _check_unique(_source regclass, _columns text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    named text := (SELECT string_agg(quote_ident(c.name), ', ' ORDER BY c.place)
        FROM unnest(_columns) WITH ORDINALITY c (name, place));
    nullable text := (
        SELECT string_agg(format('ALTER COLUMN %I SET NOT NULL', c.name), ', ' ORDER BY c.place)
        FROM unnest(_columns) WITH ORDINALITY c (name, place)
        JOIN pg_attribute a ON (a.attrelid, a.attname) = (_source, c.name) WHERE NOT a.attnotnull);
    numbers int2[] := ARRAY(SELECT a.attnum FROM pg_attribute a
        WHERE a.attrelid = _source AND a.attname = ANY (_columns) ORDER BY a.attnum);
    is_unique boolean := EXISTS (
        SELECT FROM pg_index i
        WHERE i.indrelid = _source AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
          AND ARRAY(SELECT k.number FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k (number) ORDER BY k.number) = numbers);
BEGIN
    PERFORM _column_type(_source, c.name) FROM unnest(_columns) c (name);
    IF nullable IS NOT NULL OR NOT is_unique THEN
        PERFORM _raise('invalid_table_definition', format('key_columns (%s) of %s are not %s', named,
                _described(_source), CASE WHEN nullable IS NULL THEN 'unique' ELSE 'declared NOT NULL' END),
            format('Make it a key: ALTER TABLE %s %s;', _source,
                concat_ws(', ', CASE WHEN NOT is_unique THEN format('ADD UNIQUE (%s)', named) END, nullable)));
    END IF;
END
$$;

-- The type of a reranker's key: that of its column or, where there are several, one of ours that has all of them. A
-- column's collation goes with it: keys are as equal, and in the order, as the source has them.
CREATE OR REPLACE FUNCTION _create_key_type(_reranker rerankers) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    key_type text := format('pgrerank.%I', _reranker.name || '_key');
BEGIN
    IF cardinality(_reranker.key_columns) = 1 THEN
        RETURN _key_type(_reranker.source, _reranker.key_columns[1]);
    END IF;
    EXECUTE format('CREATE TYPE %s AS (%s)', key_type, (
        SELECT string_agg(format('%I %s', c.name, _key_type(_reranker.source, c.name))
            || coalesce(' COLLATE ' || nullif(a.attcollation, 0)::regcollation, ''), ', ' ORDER BY c.place)
        FROM unnest(_reranker.key_columns) WITH ORDINALITY c (name, place)
        JOIN pg_attribute a ON (a.attrelid, a.attname) = (_reranker.source, c.name)));
    EXECUTE format(
        'COMMENT ON TYPE %s IS %L', key_type, format('The key of a document of reranker %s', _reranker.name));
    EXECUTE format('ALTER TYPE %s OWNER TO %s', key_type, _owner());
    RETURN key_type;
END
$$;

-- The columns of a type of ours, by whatever names it was made with; no row for any other.
CREATE OR REPLACE FUNCTION _parts_of_type(_key_type text) RETURNS TABLE (place bigint, part name, type text)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT row_number() OVER (ORDER BY a.attnum), a.attname, a.atttypid::regtype::text
    FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid
    WHERE t.oid = _key_type::regtype AND t.typtype = 'c'
$$;

-- A key as a list of expressions. The planner finds a document of the source by these: it sees through a composite
-- value that is made of columns to the columns, and knows no index on the value.
CREATE OR REPLACE FUNCTION _parts(_reranker rerankers, _key text) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN cardinality(_reranker.key_columns) = 1 THEN _key ELSE (
        SELECT string_agg(format('(%s).%I', _key, p.part), ', ' ORDER BY p.place)
        FROM _parts_of_type(_reranker.key_type) p) END
$$;

-- The key of a row of the source. Its types have their schema: policies rest on it.
CREATE OR REPLACE FUNCTION _key_of(_reranker rerankers, _row text) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('%s.%I::%s', _row, _reranker.key_columns[1], _qualified_type(_reranker.key_type::regtype))
    WHERE cardinality(_reranker.key_columns) = 1
    UNION ALL
    SELECT format('ROW(%s)::%s', string_agg(
        format('%s.%I::%s', _row, c.name, _qualified_type(p.type::regtype)), ', ' ORDER BY c.place), _reranker.key_type)
    FROM unnest(_reranker.key_columns) WITH ORDINALITY c (name, place)
    JOIN _parts_of_type(_reranker.key_type) p USING (place)
    HAVING count(*) > 1
$$;

-- A key as text, in which it is kept: alike whatever the session's settings. A literal that is cast to the key's type
-- has been read by these before it gets here.
CREATE OR REPLACE FUNCTION _as_kept(_key anyelement) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$ SELECT _key::text $$;

-- The condition that two keys are the same, by which a document of the source is found.
CREATE OR REPLACE FUNCTION _same_key(_reranker rerankers, _one text, _other text) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT format('(%s) = (%s)', _parts(_reranker, _one), _parts(_reranker, _other)) $$;

-- The condition that a document's key is among those in an array of texts.
CREATE OR REPLACE FUNCTION _among(_reranker rerankers, _key text, _keys text) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN cardinality(_reranker.key_columns) = 1
        THEN format('%s = ANY (%s::%s[])', _key, _keys, _reranker.key_type)
        ELSE format('(%s) IN (SELECT %s FROM (SELECT u.key::%s AS key FROM unnest(%s) u (key)) k)',
            _parts(_reranker, _key), _parts(_reranker, 'k.key'), _reranker.key_type, _keys) END
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
            GROUP BY k.key HAVING count(*) > 1 OR NOT k.key IS NOT NULL LIMIT 1
            $sql$, _keys) INTO broken;
        IF broken.times > 0 THEN
            PERFORM _raise('unique_violation', format('key_columns (%s) of %s is no key: %s',
                array_to_string(_reranker.key_columns, ', '), _described(_reranker.source), CASE
                WHEN broken.times > 1 THEN format('%L comes %s times', broken.key, broken.times)
                ELSE coalesce(quote_literal(broken.key), 'a row') || ' has NULL' END));
        END IF;
    END IF;
END
$$;

-- The same of all its keys, and of those that a search has found.
CREATE OR REPLACE FUNCTION _check_all_keys(_reranker rerankers) RETURNS void
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT _check_keys(_reranker, format('SELECT %s FROM %s s', _key_of(_reranker, 's'), _reranker.source))
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
