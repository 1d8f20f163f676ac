-- filter => '{"tenant_id": 7, "lang": ["en", "de"], "published": {">=": "2026-01-01"}}': JSON to quoted predicates, so that
-- callers pass no SQL. Keys are columns of the source; values are cast to the column's type.

-- A value as a literal of the column's type.
CREATE OR REPLACE FUNCTION _filter_literal(source regclass, "column" text, value jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    type text := (_column_type(source, "column")).type;
    literal text := format('%L::%s', CASE WHEN type IN ('json', 'jsonb') THEN value::text ELSE value #>> '{}' END, type);
BEGIN
    IF type NOT IN ('json', 'jsonb') AND jsonb_typeof(value) = 'object' THEN
        PERFORM _fail('invalid_parameter_value', format('filter: column "%s" is of type %s, which %s is not', "column", type, value));
    END IF;
    EXECUTE 'SELECT ' || literal;
    RETURN literal;
EXCEPTION WHEN data_exception THEN
    PERFORM _fail('invalid_parameter_value', format('filter: column "%s" is of type %s, which %s is not', "column", type, value));
END
$$;

CREATE OR REPLACE FUNCTION _filter_in(source regclass, "column" text, operand jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('d.%I IN (%s)', "column",
        coalesce(string_agg(_filter_literal(source, "column", v), ', ') FILTER (WHERE v <> 'null'), 'NULL'))
        || CASE WHEN bool_or(v = 'null') THEN format(' OR d.%I IS NULL', "column") ELSE '' END
    FROM jsonb_array_elements(operand) v
$$;

CREATE OR REPLACE FUNCTION _filter_predicate(source regclass, "column" text, operator text, operand jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF operator IN ('in', 'not in') AND jsonb_typeof(operand) = 'array' THEN
        RETURN format(CASE operator WHEN 'in' THEN '(%s)' ELSE '(%s) IS NOT TRUE' END, _filter_in(source, "column", operand));
    ELSIF operator IN ('=', '!=') THEN
        RETURN format('d.%I IS %s DISTINCT FROM %s', "column", CASE operator WHEN '=' THEN 'NOT' ELSE '' END,
            CASE operand WHEN 'null' THEN 'NULL' ELSE _filter_literal(source, "column", operand) END);
    ELSIF operator IN ('<', '<=', '>', '>=', 'like', 'ilike', '@>') AND operand <> 'null' THEN
        RETURN format('d.%I %s %s', "column", operator, _filter_literal(source, "column", operand));
    END IF;
    PERFORM _fail('invalid_parameter_value', format('filter: "%s" with %s is not an operator and operand for column "%s"', operator, operand, "column"),
        'Operators: =, !=, <, <=, >, >=, in, not in (arrays), like, ilike, @>.');
END
$$;

-- The predicate over alias d that a filter stands for; 'true' for none.
CREATE OR REPLACE FUNCTION _filter_sql(source regclass, filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF filter IS NULL THEN
        RETURN 'true';
    ELSIF jsonb_typeof(filter) <> 'object' THEN
        PERFORM _fail('invalid_parameter_value', format('filter is a JSON %s: an object {"column": value, ...} is wanted', jsonb_typeof(filter)));
    END IF;
    RETURN coalesce((
        SELECT string_agg(CASE
            WHEN jsonb_typeof(f.value) = 'array' THEN _filter_predicate(source, f.key, 'in', f.value)
            WHEN jsonb_typeof(f.value) = 'object' AND (_column_type(source, f.key)).type NOT IN ('json', 'jsonb') THEN (
                SELECT coalesce(string_agg(_filter_predicate(source, f.key, o.key, o.value), ' AND '), 'true') FROM jsonb_each(f.value) o)
            ELSE _filter_predicate(source, f.key, '=', f.value) END, ' AND ')
        FROM jsonb_each(filter) f), 'true');
END
$$;
