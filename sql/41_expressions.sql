-- What a reranker reads of a row: expressions over the source's columns, and text search configurations.

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
