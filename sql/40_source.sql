-- What a source table offers: its key, the text of its documents, an embedding column.

CREATE OR REPLACE FUNCTION _source_key(source regclass, OUT key_column name, OUT key_type regtype)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    relkind "char" := (SELECT c.relkind FROM pg_class c WHERE c.oid = source);
    columns text[];
BEGIN
    IF relkind NOT IN ('r', 'p') THEN
        PERFORM _fail('wrong_object_type', format('%s is a %s, which has no primary key and fires no triggers', source,
            CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'relation of another kind' END),
            'Name the table below it; text_expression can compute what the view does.');
    END IF;
    SELECT array_agg(a.attname ORDER BY a.attnum), min(a.attname::text), min(a.atttypid)
    INTO columns, key_column, key_type
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = source AND i.indisprimary;
    IF columns IS NULL THEN
        PERFORM _fail('invalid_table_definition', format('table %s has no primary key', source),
            format('Add one: ALTER TABLE %s ADD PRIMARY KEY (...);', source));
    ELSIF cardinality(columns) > 1 THEN
        PERFORM _fail('feature_not_supported', format('table %s has a composite primary key (%s): pgrerank wants one of a single column', source, array_to_string(columns, ', ')),
            'Add a single-column key, for example a bigint identity, and make it the primary key.');
    ELSIF key_type NOT IN ('bigint'::regtype, 'integer'::regtype, 'uuid'::regtype, 'text'::regtype, 'character varying'::regtype) THEN
        PERFORM _fail('datatype_mismatch', format('primary key %s.%s is of type %s: pgrerank wants bigint, integer, uuid or text', source, key_column, key_type));
    END IF;
END
$$;

-- Type of a column, or an error that names it.
CREATE OR REPLACE FUNCTION _column_type(source regclass, "column" text, OUT type regtype, OUT typmod int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT a.atttypid, a.atttypmod INTO type, typmod
    FROM pg_attribute a WHERE a.attrelid = source AND a.attname = "column" AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        PERFORM _fail('undefined_column', format('table %s has no column "%s"', source, "column"), (
            SELECT format('It has: %s.', string_agg(a.attname, ', ' ORDER BY a.attnum))
            FROM pg_attribute a WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped));
    END IF;
END
$$;

-- The expression that yields a document's text, from columns or checked as Postgres checks a generated column:
-- immutable, of this table's columns alone, no subquery, no set. What comes back is deparsed, hence well-formed.
CREATE OR REPLACE FUNCTION _text_expression(source regclass, text_columns text[], text_expression text) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    name text;
BEGIN
    IF (text_columns IS NULL) = (text_expression IS NULL) OR cardinality(text_columns) = 0 THEN
        PERFORM _fail('invalid_parameter_value', format('the text of a document in %s: give either text_columns or text_expression', source),
            'For example text_columns => ''{title, body}''.');
    END IF;
    IF text_expression IS NOT NULL THEN
        RETURN _checked_expression(source, text_expression);
    END IF;
    FOREACH name IN ARRAY text_columns LOOP
        IF NOT EXISTS (SELECT FROM _column_type(source, name) c JOIN pg_type t ON t.oid = c.type WHERE t.typcategory = 'S') THEN
            PERFORM _fail('datatype_mismatch', format('column %s.%s is of type %s, text wanted', source, quote_ident(name), (_column_type(source, name)).type),
                'Use text_expression to turn it into text.');
        END IF;
    END LOOP;
    RETURN (SELECT CASE count(*) WHEN 1 THEN min(format('%I::text', c))
                   ELSE format(E'concat_ws(E''\\n'', %s)', string_agg(quote_ident(c), ', ' ORDER BY i)) END
            FROM unnest(text_columns) WITH ORDINALITY u (c, i));
END
$$;

CREATE OR REPLACE FUNCTION _checked_expression(source regclass, expression text) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    columns int := (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped);
    checked text;
BEGIN
    IF expression ~ ';|--|/\*' THEN
        PERFORM _fail('syntax_error', format('text_expression "%s" contains ";", "--" or "/*": an expression and nothing else is wanted', expression));
    END IF;
    EXECUTE format('CREATE TEMPORARY TABLE pgrerank_probe (LIKE %s) ON COMMIT DROP', source);
    EXECUTE format('ALTER TABLE pg_temp.pgrerank_probe ADD COLUMN pgrerank_text text GENERATED ALWAYS AS (%s) STORED', expression);
    SELECT pg_get_expr(d.adbin, d.adrelid) INTO checked
    FROM pg_attrdef d JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.adrelid, d.adnum)
    WHERE d.adrelid = 'pg_temp.pgrerank_probe'::regclass AND a.attname = 'pgrerank_text'
      AND columns + 1 = (SELECT count(*) FROM pg_attribute b WHERE b.attrelid = d.adrelid AND b.attnum > 0 AND NOT b.attisdropped);
    DROP TABLE pg_temp.pgrerank_probe;
    IF checked IS NULL THEN
        PERFORM _fail('syntax_error', format('text_expression "%s" is more than an expression', expression));
    END IF;
    RETURN checked;
EXCEPTION
    WHEN undefined_column OR undefined_function OR syntax_error OR datatype_mismatch OR invalid_object_definition OR feature_not_supported
        OR grouping_error OR windowing_error OR invalid_column_reference OR undefined_table THEN
        RAISE EXCEPTION 'text_expression of %: %', source, SQLERRM
            USING ERRCODE = SQLSTATE,
                  HINT = 'An immutable expression of type text over this table''s columns is wanted, without subqueries.';
END
$$;

-- Dimensions and type of the user's own embedding column; a query vector must have as many.
CREATE OR REPLACE FUNCTION _embedding_column(source regclass, "column" text, OUT type text, OUT dims int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT c.type::text, c.typmod INTO type, dims FROM _column_type(source, "column") c
    WHERE c.type IN ('vector'::regtype, 'halfvec'::regtype);
    IF NOT FOUND THEN
        PERFORM _fail('datatype_mismatch', format('column %s.%s is of type %s: vector(n) or halfvec(n) wanted', source, quote_ident("column"), (_column_type(source, "column")).type));
    ELSIF dims < 0 THEN
        PERFORM _fail('datatype_mismatch', format('column %s.%s is a %s without dimensions', source, quote_ident("column"), type),
            format('Say them: ALTER TABLE %s ALTER COLUMN %I TYPE %s(n);', source, "column", type));
    END IF;
END
$$;
