-- What a source table offers: its key, the text of its documents, an embedding column.

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

-- Returns the expression that yields a document's text, made of columns, or given and checked.
CREATE OR REPLACE FUNCTION _text_expression(_source regclass, _text_columns text[], _expression text) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    "column" text;
    of_type regtype;
BEGIN
    IF (_text_columns IS NULL) = (_expression IS NULL) OR cardinality(_text_columns) = 0 THEN
        PERFORM _raise('invalid_parameter_value',
            format('the text of a document in %s: give either text_columns or text_expression', _source),
            'For example text_columns => ''{title, body}''.');
    ELSIF _expression IS NOT NULL THEN
        RETURN _checked_expression(_source, 'text_expression', _expression);
    END IF;
    FOREACH "column" IN ARRAY _text_columns LOOP
        of_type := (_column_type(_source, "column")).type;
        IF NOT EXISTS (SELECT FROM pg_type t WHERE t.oid = of_type AND t.typcategory = 'S') THEN
            PERFORM _raise('datatype_mismatch',
                format('column %s.%I is of type %s, text expected', _source, "column", of_type),
                'Use text_expression to turn it into text.');
        END IF;
    END LOOP;
    IF cardinality(_text_columns) = 1 THEN
        RETURN format('%I::text', _text_columns[1]);
    END IF;
    RETURN (
        SELECT format(E'pg_catalog.concat_ws(E''\\n'', %s)', string_agg(quote_ident(c.name), ', ' ORDER BY c.place))
        FROM unnest(_text_columns) WITH ORDINALITY c (name, place));
END
$$;

-- What an expression over a table may run, now or once somebody makes a cast for a type of theirs, and whose it is;
-- none where it is no expression. A view is analysed and never planned: planning would call functions.
CREATE OR REPLACE FUNCTION _code_in(_table text, _expression text) RETURNS TABLE (code text, owner oid)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    tried text := format('pg_temp.%I', 'pgrerank_' || gen_random_uuid());
BEGIN
    EXECUTE format('CREATE TEMPORARY VIEW %s AS SELECT (%s)::text FROM %s', tried, _expression, _table);
    RETURN QUERY
    WITH used AS (
        SELECT d.refclassid::regclass AS class, d.refobjid AS object, a.atttypid AS type
        FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        LEFT JOIN pg_attribute a ON d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
            AND (a.attrelid, a.attnum) = (d.refobjid, d.refobjsubid)
        WHERE r.ev_class = tried::regclass)
    SELECT 'function ' || p.oid::regprocedure, p.proowner FROM pg_proc p LEFT JOIN pg_operator o ON o.oprcode = p.oid
    WHERE (SELECT bool_or(CASE u.class WHEN 'pg_proc'::regclass THEN u.object = p.oid
        WHEN 'pg_operator'::regclass THEN u.object = o.oid END) FROM used u)
    UNION ALL
    SELECT 'type ' || t.oid::regtype, t.typowner FROM pg_type t, used u
    WHERE t.oid = u.type OR (u.class = 'pg_type'::regclass AND t.oid = u.object)
        OR t.oid = (SELECT e.typelem FROM pg_type e WHERE e.oid = u.type);
    EXECUTE format('DROP VIEW %s', tried);
EXCEPTION WHEN OTHERS THEN
    IF SQLSTATE NOT LIKE '42%' OR SQLSTATE = '42501' THEN
        RAISE;
    END IF;
END
$$;

-- Raises an error where that is others', who may replace it: triggers and workers run it with rights of their own.
CREATE OR REPLACE FUNCTION _check_code(_table text, _expression text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    found record;
BEGIN
    SELECT c.* INTO found FROM _code_in(_table, _expression) c WHERE NOT pg_has_role(c.owner, _owner(), 'MEMBER');
    IF found.code IS NOT NULL THEN
        PERFORM _raise('insufficient_privilege', format('expression "%s" uses %s of role %I, who could have it run '
            'anything with the rights of %s', _expression, found.code, pg_get_userbyid(found.owner), _owner()),
            format('Have it owned by %s, who owns pgrerank''s functions, or by a superuser.', _owner()));
    END IF;
END
$$;

-- An expression over columns as Postgres writes it, once some are renamed; NULL where it is more than an expression. It
-- is written out in full, but for what pg_catalog has: it means the same whatever the search_path. The table that it is
-- tried on has a name that nobody can take beforehand. Planning calls functions, so whose they are is looked at first.
CREATE OR REPLACE FUNCTION _deparsed(_columns text, _expression text, _renamed jsonb DEFAULT '{}') RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    probe text := format('pg_temp.%I', 'pgrerank_' || gen_random_uuid());
    columns text[];
    renamed record;
    deparsed text;
BEGIN
    IF _expression IS NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format('CREATE TEMPORARY TABLE %s (%s) ON COMMIT DROP', probe, _columns);
    PERFORM _check_code(probe, _expression);
    SELECT array_agg(a.attname::text) INTO columns
    FROM pg_attribute a WHERE a.attrelid = probe::regclass AND a.attnum > 0;
    EXECUTE format('ALTER TABLE %s ADD COLUMN pgrerank_text text GENERATED ALWAYS AS (%s) STORED',
        probe, _expression);
    FOR renamed IN
        SELECT r.key AS old, format('pgrerank_%s', row_number() OVER ()) AS meanwhile
        FROM jsonb_each_text(_renamed) r
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME %I TO %I', probe, renamed.old, renamed.meanwhile);
    END LOOP;
    FOR renamed IN
        SELECT format('pgrerank_%s', row_number() OVER ()) AS meanwhile, r.value AS new FROM jsonb_each_text(_renamed) r
    LOOP
        EXECUTE format('ALTER TABLE %s RENAME %I TO %I', probe, renamed.meanwhile, renamed.new);
    END LOOP;
    PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    SELECT pg_get_expr(d.adbin, d.adrelid) INTO deparsed
    FROM pg_attrdef d JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.adrelid, d.adnum)
    WHERE d.adrelid = probe::regclass AND a.attname = 'pgrerank_text'
      AND cardinality(columns) + 1 = (
        SELECT count(*) FROM pg_attribute b WHERE b.attrelid = d.adrelid AND b.attnum > 0 AND NOT b.attisdropped);
    EXECUTE format('DROP TABLE %s', probe);
    RETURN deparsed;
END
$$;

-- Checks the expression of a setting as Postgres checks a generated column: immutable, of this table's columns alone,
-- no subquery, no set. What comes back is deparsed, hence well-formed.
CREATE OR REPLACE FUNCTION _checked_expression(_source regclass, _setting text, _expression text) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    checked text;
BEGIN
    IF _expression ~ ';|--|/\*' THEN
        PERFORM _raise('syntax_error', format(
            '%s "%s" contains ";", "--" or "/*": expected an expression and nothing else', _setting, _expression));
    END IF;
    checked := _deparsed(format('LIKE %s', _source), _expression);
    IF checked IS NULL THEN
        PERFORM _raise('syntax_error', format('%s "%s" is more than an expression', _setting, _expression));
    END IF;
    RETURN checked;
EXCEPTION
    WHEN undefined_column OR undefined_function OR syntax_error OR datatype_mismatch OR invalid_object_definition
        OR feature_not_supported OR grouping_error OR windowing_error OR invalid_column_reference
        OR undefined_table THEN
        PERFORM _raise(SQLSTATE, format('%s of %s: %s', _setting, _source, SQLERRM),
            'An immutable expression of type text over this table''s columns is expected, without subqueries.');
END
$$;

-- The name of a text search configuration, or an error that says which there are. NULL stands for the database's own,
-- or for english where that is simple, which neither stems nor knows stop words.
CREATE OR REPLACE FUNCTION _checked_config(_config text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _config IS NULL THEN
        _config := current_setting('default_text_search_config');
        IF _config::regconfig = 'pg_catalog.simple'::regconfig THEN
            RAISE NOTICE 'pgrerank: texts are cut into words by english, as the database has no other '
                'default_text_search_config than simple'
                USING HINT = 'Give text_search_config to choose another, simple included.';
            _config := 'english';
        END IF;
    END IF;
    RETURN _config::regconfig;
EXCEPTION WHEN undefined_object OR invalid_name OR syntax_error THEN
    PERFORM _raise('undefined_object', format('text_search_config "%s" does not exist', _config), (
        SELECT format('There are: %s.', string_agg(c.oid::regconfig::text, ', ' ORDER BY c.cfgname))
        FROM pg_ts_config c));
END
$$;

-- The text search configuration for a language: one of that name, or the one that Postgres has for its ISO 639-1 code;
-- where there is none, the fallback.
CREATE OR REPLACE FUNCTION _config_of(_language text, _fallback text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$
    SELECT coalesce((
        SELECT c.cfgname::text FROM pg_ts_config c
        WHERE c.cfgnamespace = 'pg_catalog'::regnamespace AND c.cfgname = coalesce(
            '{"ar": "arabic", "ca": "catalan", "da": "danish", "de": "german", "el": "greek", "en": "english",
              "es": "spanish", "et": "estonian", "eu": "basque", "fi": "finnish", "fr": "french", "ga": "irish",
              "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian",
              "lt": "lithuanian", "nb": "norwegian", "ne": "nepali", "nl": "dutch", "nn": "norwegian",
              "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian",
              "sv": "swedish", "ta": "tamil", "tr": "turkish", "yi": "yiddish"}'::jsonb
                ->> substring(lower(_language) FROM '^([a-z]{2})([-_]|$)'),
            lower(_language))), _fallback)
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
