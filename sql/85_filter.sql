-- filter => '{"tenant_id": 7, "lang": ["en", "de"], "meta.year": {">=": 2020}}': JSON to quoted predicates, so that
-- callers pass no SQL. Names are columns of the source, or paths into a column of JSON; values are cast to the column's
-- type, or compared as the JSON that they are.

DO $$
BEGIN
    IF to_regtype('pgrerank.filter_target') IS NULL THEN
        CREATE TYPE filter_target AS (name text, "column" text, path text[], type regtype, expression text);
    END IF;
END
$$;
COMMENT ON TYPE filter_target IS
    'What a member of a filter names: a column of the source d, or what stands at a path in one of JSON';

CREATE OR REPLACE FUNCTION _filter_operators() RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT '=, !=, <, <=, >, >=, between (two values), in, not in (arrays), is null (true or false), like, ilike, '
        '@>, <@, && (arrays, ranges and JSON).'
$$;

-- The keys of a path, which stand between dots; one with a dot in it stands in double quotes. NULL where it is none.
CREATE OR REPLACE FUNCTION _filter_path(_path text) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(CASE WHEN m.parts[1] LIKE '"%' THEN substr(m.parts[1], 2, length(m.parts[1]) - 2)
        ELSE m.parts[1] END ORDER BY m.place)
    FROM regexp_matches(_path, '\.("[^"]+"|[^."]+)', 'g') WITH ORDINALITY m (parts, place)
    WHERE _path ~ '^(\.("[^"]+"|[^."]+))+$'
$$;

-- A column as a filter names it: in double quotes where it would be read as something else.
CREATE OR REPLACE FUNCTION _filter_name(_column text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _column IN ('and', 'or', 'not', 'boosts') OR _column LIKE '%.%' THEN '"' || _column || '"'
        ELSE _column END
$$;

-- Finds what a name stands for: a column, or a path that begins with one.
CREATE OR REPLACE FUNCTION _filter_target(_source regclass, _name text) RETURNS filter_target
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target filter_target;
    is_column boolean := EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = _source AND a.attname = _name AND NOT a.attisdropped);
    parts text[] := CASE WHEN NOT is_column THEN _filter_path('.' || _name) END;
BEGIN
    target.name := _name;
    target."column" := CASE WHEN is_column THEN _name ELSE coalesce(parts[1], split_part(_name, '.', 1)) END;
    target.type := (_column_type(_source, target."column")).type;
    target.expression := format('d.%I', target."column");
    IF target.type = 'json'::regtype THEN
        target.expression := target.expression || '::jsonb';
        target.type := 'jsonb';
    END IF;
    IF NOT is_column AND cardinality(parts) IS DISTINCT FROM 1 THEN
        target.path := parts[2:];
        IF target.type <> 'jsonb'::regtype OR target.path IS NULL THEN
            PERFORM _raise('invalid_parameter_value', format('filter: "%s" is no path into a column of type jsonb: '
                'column "%s" is of type %s', _name, target."column", target.type),
                'A path is column.key.key, with double quotes around a key that has a dot in it.');
        END IF;
        target.expression := format('(%s #> %L)', target.expression, target.path);
    END IF;
    RETURN target;
END
$$;

-- A value as a literal of the target's type, by the name that has no length: character means character(1). A JSON array
-- is one of an array type, too.
CREATE OR REPLACE FUNCTION _filter_literal(_target filter_target, _value jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    value text := _value #>> '{}';
    literal text;
BEGIN
    IF _target.type = 'jsonb'::regtype THEN
        RETURN format('%L::jsonb', _value);
    ELSIF jsonb_typeof(_value) = 'array' AND _category_of(_target.type) = 'A' THEN
        value := ARRAY(SELECT e.value FROM jsonb_array_elements_text(_value) WITH ORDINALITY e (value, n) ORDER BY e.n);
    ELSIF jsonb_typeof(_value) IN ('object', 'array') THEN
        RAISE data_exception;
    END IF;
    literal := format('%L::%s', value, _qualified_type(_target.type));
    EXECUTE 'SELECT ' || literal;
    RETURN literal;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('invalid_parameter_value',
        format('filter: column "%s" is of type %s, which %s is not', _target."column", _target.type, _value));
END
$$;

-- A type's category: A for arrays, R for ranges and multiranges.
CREATE OR REPLACE FUNCTION _category_of(_type regtype) RETURNS "char"
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT t.typcategory FROM pg_type t WHERE t.oid = _type $$;

CREATE OR REPLACE FUNCTION _bad_filter(_target filter_target, _operator text, _operand jsonb, _hint text DEFAULT NULL)
RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _raise('invalid_parameter_value',
        format('filter: "%s" with %s is not an operator and operand for "%s" of type %s',
            _operator, _operand, _target.name, _target.type),
        coalesce(_hint, 'Operators: ' || _filter_operators()))
$$;

-- The value in the objects of a path: what @> of the whole column compares, which a GIN index serves.
CREATE OR REPLACE FUNCTION _at_path(_path text[], _value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    nested jsonb := _value;
BEGIN
    FOR place IN REVERSE coalesce(cardinality(_path), 0)..1 LOOP
        nested := jsonb_build_object(_path[place], nested);
    END LOOP;
    RETURN nested;
END
$$;

-- Whether JSON at a target contains a value. For values inside of objects the column is asked as a whole.
CREATE OR REPLACE FUNCTION _filter_contains(_target filter_target, _value jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _target.path IS NOT NULL AND jsonb_typeof(_value) IN ('array', 'object')
        THEN format('d.%I::jsonb @> %L::jsonb', _target."column", _at_path(_target.path, _value))
        ELSE format('%s @> %L::jsonb', _target.expression, _value) END
$$;

-- Whether a column has a GIN index, which serves @> and no equality.
CREATE OR REPLACE FUNCTION _has_gin(_source regclass, _column text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT EXISTS (
        SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE i.indrelid = _source AND m.amname = 'gin' AND a.attname = _column)
$$;

-- Equality with one value. JSON null is as good as nothing there. A number, text or boolean at a path is what the whole
-- column contains, which a GIN index on it serves.
CREATE OR REPLACE FUNCTION _filter_equals(_source regclass, _target filter_target, _value jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE
        WHEN _value = 'null' AND _target.type = 'jsonb'::regtype
            THEN format('(%s #>> ''{}'') IS NULL', _target.expression)
        WHEN _value = 'null' THEN format('%s IS NULL', _target.expression)
        WHEN _target.path IS NOT NULL AND jsonb_typeof(_value) NOT IN ('array', 'object')
            AND _has_gin(_source, _target."column")
            THEN format('d.%I @> %L::jsonb', _target."column", _at_path(_target.path, _value))
        ELSE format('%s = %s', _target.expression, _filter_literal(_target, _value)) END
$$;

CREATE OR REPLACE FUNCTION _filter_in(_source regclass, _target filter_target, _values jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT '(' || concat_ws(' OR ',
        CASE WHEN _target.path IS NOT NULL AND _has_gin(_source, _target."column")
            THEN string_agg(_filter_equals(_source, _target, v), ' OR ') FILTER (WHERE v <> 'null')
            ELSE _target.expression || ' IN ('
                || string_agg(_filter_literal(_target, v), ', ') FILTER (WHERE v <> 'null') || ')' END,
        max(_filter_equals(_source, _target, v)) FILTER (WHERE v = 'null'),
        'false') || ')'
    FROM jsonb_array_elements(_values) v
$$;

-- Which comes first. JSON is compared with values of its own kind: to Postgres, every text is more than every number.
CREATE OR REPLACE FUNCTION _filter_compares(_target filter_target, _operator text, _value jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    kind text := jsonb_typeof(_value);
    compared text := format('%s %s %s', _target.expression, _operator, _filter_literal(_target, _value));
BEGIN
    IF _target.type = 'jsonb'::regtype AND kind NOT IN ('number', 'string') THEN
        PERFORM _bad_filter(_target, _operator, _value, 'JSON is ordered by numbers or texts.');
    ELSIF _target.type = 'jsonb'::regtype THEN
        RETURN format('(jsonb_typeof(%s) = %L AND %s)', _target.expression, kind, compared);
    END IF;
    RETURN compared;
END
$$;

-- What contains, is contained in, or overlaps: JSON, arrays (an operand is an array in JSON or as Postgres writes it)
-- and ranges, which contain an element too.
CREATE OR REPLACE FUNCTION _filter_sets(_target filter_target, _operator text, _value jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    element filter_target := _target;
BEGIN
    IF _target.type = 'jsonb'::regtype AND _operator = '&&' AND jsonb_typeof(_value) = 'array' THEN
        RETURN (
            SELECT format('(%s)', concat_ws(' OR ',
                string_agg(_filter_contains(_target, jsonb_build_array(v)), ' OR '), 'false'))
            FROM jsonb_array_elements(_value) v);
    ELSIF _target.type = 'jsonb'::regtype AND _operator = '@>' THEN
        RETURN _filter_contains(_target, _value);
    ELSIF _target.type = 'jsonb'::regtype AND _operator = '<@' OR _category_of(_target.type) = 'A' THEN
        RETURN format('%s %s %s', _target.expression, _operator, _filter_literal(_target, _value));
    ELSIF _category_of(_target.type) = 'R' THEN
        IF _operator = '@>' AND _value #>> '{}' !~ '^\s*([[({]|empty)' THEN
            SELECT r.rngsubtype INTO element.type FROM pg_range r WHERE _target.type IN (r.rngtypid, r.rngmultitypid);
        END IF;
        RETURN format('%s %s %s', _target.expression, _operator, _filter_literal(element, _value));
    END IF;
    PERFORM _bad_filter(_target, _operator, _value, format('%s is for arrays, ranges and JSON.', _operator));
END
$$;

-- The predicate of one operator.
CREATE OR REPLACE FUNCTION _filter_predicate(
    _source regclass, _target filter_target, _operator text, _operand jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    kind text := jsonb_typeof(_operand);
BEGIN
    CASE
        WHEN _operator = '=' THEN
            RETURN _filter_equals(_source, _target, _operand);
        WHEN _operator = '!=' THEN
            RETURN format('(%s) IS NOT TRUE', _filter_equals(_source, _target, _operand));
        WHEN _operator = 'in' AND kind = 'array' THEN
            RETURN _filter_in(_source, _target, _operand);
        WHEN _operator = 'not in' AND kind = 'array' THEN
            RETURN format('%s IS NOT TRUE', _filter_in(_source, _target, _operand));
        WHEN _operator = 'is null' AND kind = 'boolean' THEN
            RETURN format('(%s) = %s', _filter_equals(_source, _target, 'null'), _operand);
        WHEN _operator IN ('<', '<=', '>', '>=') AND kind <> 'null' THEN
            RETURN _filter_compares(_target, _operator, _operand);
        WHEN _operator = 'between' AND kind = 'array' AND jsonb_array_length(_operand) = 2 THEN
            RETURN concat_ws(' AND ', _filter_predicate(_source, _target, '>=', _operand -> 0),
                _filter_predicate(_source, _target, '<=', _operand -> 1));
        WHEN _operator IN ('like', 'ilike') AND kind = 'string' THEN
            RETURN format('%s %s %L', CASE WHEN _target.type = 'jsonb'::regtype
                THEN format('(%s #>> ''{}'')', _target.expression) ELSE _target.expression || '::text' END,
                _operator, _operand #>> '{}');
        WHEN _operator IN ('@>', '<@', '&&') AND kind <> 'null' THEN
            RETURN _filter_sets(_target, _operator, _operand);
        ELSE
            PERFORM _bad_filter(_target, _operator, _operand);
    END CASE;
END
$$;

-- The predicate that one member stands for: a list, an object of operators, or a value.
CREATE OR REPLACE FUNCTION _filter_entry(_source regclass, _name text, _value jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target filter_target := _filter_target(_source, _name);
BEGIN
    IF jsonb_typeof(_value) = 'array' THEN
        RETURN _filter_predicate(_source, target, 'in', _value);
    ELSIF jsonb_typeof(_value) <> 'object' THEN
        RETURN _filter_predicate(_source, target, '=', _value);
    END IF;
    RETURN (
        SELECT coalesce(string_agg(_filter_predicate(_source, target, o.key, o.value), ' AND '), 'true')
        FROM jsonb_each(_value) o);
END
$$;

-- The predicate over alias d that a filter stands for; 'true' for none. What and, or and not hold are filters.
CREATE OR REPLACE FUNCTION _filter_sql(_source regclass, _filter jsonb, _depth int DEFAULT 0) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _filter IS NULL THEN
        RETURN 'true';
    ELSIF jsonb_typeof(_filter) <> 'object' THEN
        PERFORM _raise('invalid_parameter_value', format(
            'filter is a JSON %s: an object {"column": value, ...} is expected', jsonb_typeof(_filter)));
    ELSIF _depth > 32 THEN
        PERFORM _raise('invalid_parameter_value', 'filter: and, or and not are more than 32 deep');
    END IF;
    RETURN coalesce((
        SELECT string_agg(CASE
            WHEN f.key IN ('and', 'or', 'not') THEN _filter_logic(_source, f.key, f.value, _depth + 1)
            ELSE _filter_entry(_source, f.key, f.value) END, ' AND ')
        FROM jsonb_each(_filter) f), 'true');
END
$$;

-- Where nothing is known of a document, it does not match, and matches what is not.
CREATE OR REPLACE FUNCTION _filter_logic(_source regclass, _word text, _operand jsonb, _depth int) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _word = 'not' THEN
        RETURN format('(%s) IS NOT TRUE', _filter_sql(_source, _operand, _depth));
    ELSIF jsonb_typeof(_operand) <> 'array' THEN
        PERFORM _raise('invalid_parameter_value',
            format('filter: "%s" with %s: an array of filters is expected', _word, _operand));
    END IF;
    RETURN (
        SELECT coalesce('(' || string_agg('(' || _filter_sql(_source, f, _depth) || ')', format(' %s ', _word)) || ')',
            (_word = 'and')::text)
        FROM jsonb_array_elements(_operand) f);
END
$$;
