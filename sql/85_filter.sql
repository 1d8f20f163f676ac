-- filter => '{"tenant_id": 7, "lang": ["en", "de"], "published": {">=": "2026-01-01"}}': JSON to quoted predicates,
-- so that callers pass no SQL. Keys are columns of the source; values are cast to the column's type.

-- A value as a literal of the column's type.
CREATE OR REPLACE FUNCTION _filter_literal(_source regclass, _column text, _value jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    of_type text := (_column_type(_source, _column)).type;
    is_json boolean := of_type IN ('json', 'jsonb');
    literal text := format('%L::%s', CASE WHEN is_json THEN _value::text ELSE _value #>> '{}' END, of_type);
BEGIN
    IF jsonb_typeof(_value) = 'object' AND NOT is_json THEN
        RAISE data_exception;
    END IF;
    EXECUTE 'SELECT ' || literal;
    RETURN literal;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('invalid_parameter_value',
        format('filter: column "%s" is of type %s, which %s is not', _column, of_type, _value));
END
$$;

CREATE OR REPLACE FUNCTION _filter_in(_source regclass, _column text, _operand jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('d.%I IN (%s)', _column, coalesce(
            string_agg(_filter_literal(_source, _column, v), ', ') FILTER (WHERE v <> 'null'), 'NULL'))
        || CASE WHEN bool_or(v = 'null') THEN format(' OR d.%I IS NULL', _column) ELSE '' END
    FROM jsonb_array_elements(_operand) v
$$;

CREATE OR REPLACE FUNCTION _filter_predicate(_source regclass, _column text, _operator text, _operand jsonb)
RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _operator IN ('in', 'not in') AND jsonb_typeof(_operand) = 'array' THEN
        RETURN format(CASE _operator WHEN 'in' THEN '(%s)' ELSE '(%s) IS NOT TRUE' END,
            _filter_in(_source, _column, _operand));
    ELSIF _operator = '!=' OR (_operator = '=' AND _operand = 'null') THEN
        RETURN format('d.%I IS %s DISTINCT FROM %s', _column,
            CASE _operator WHEN '=' THEN 'NOT' ELSE '' END,
            CASE _operand WHEN 'null' THEN 'NULL' ELSE _filter_literal(_source, _column, _operand) END);
    ELSIF _operator IN ('=', '<', '<=', '>', '>=', 'like', 'ilike', '@>') AND _operand <> 'null' THEN
        RETURN format('d.%I %s %s', _column, _operator, _filter_literal(_source, _column, _operand));
    END IF;
    PERFORM _raise('invalid_parameter_value',
        format('filter: "%s" with %s is not an operator and operand for column "%s"', _operator, _operand, _column),
        'Operators: =, !=, <, <=, >, >=, in, not in (arrays), like, ilike, @>.');
END
$$;

-- The predicate that one column's entry stands for: a list, an object of operators, or a value.
CREATE OR REPLACE FUNCTION _filter_entry(_source regclass, _column text, _value jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF jsonb_typeof(_value) = 'array' THEN
        RETURN _filter_predicate(_source, _column, 'in', _value);
    ELSIF jsonb_typeof(_value) <> 'object' OR (_column_type(_source, _column)).type IN ('json', 'jsonb') THEN
        RETURN _filter_predicate(_source, _column, '=', _value);
    END IF;
    RETURN (
        SELECT coalesce(string_agg(_filter_predicate(_source, _column, o.key, o.value), ' AND '), 'true')
        FROM jsonb_each(_value) o);
END
$$;

-- The predicate over alias d that a filter stands for; 'true' for none.
CREATE OR REPLACE FUNCTION _filter_sql(_source regclass, _filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _filter IS NULL THEN
        RETURN 'true';
    ELSIF jsonb_typeof(_filter) <> 'object' THEN
        PERFORM _raise('invalid_parameter_value', format(
            'filter is a JSON %s: an object {"column": value, ...} is expected', jsonb_typeof(_filter)));
    END IF;
    RETURN coalesce((
        SELECT string_agg(_filter_entry(_source, f.key, f.value), ' AND ') FROM jsonb_each(_filter) f), 'true');
END
$$;
