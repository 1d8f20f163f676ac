-- What a reranker was made with, in the words of create_reranker: for those who compare a declaration with it.

-- Of the newest generation, which alter_reranker starts from.
CREATE OR REPLACE FUNCTION settings(name text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(name);
    g generations := _newest(name);
BEGIN
    RETURN jsonb_build_object(
        'source', (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = r.source),
        'text_columns', g.text_columns, 'text_expression', CASE WHEN g.text_columns IS NULL THEN g.text_expression END,
        'embedding_model', g.embedding_model, 'late_interaction_model', g.late_interaction_model, 'cross_encoder_model', r.cross_encoder_model,
        'embedding_column', r.embedding_column, 'distance', r.distance, 'candidates', r.candidates, 'maxsim_bit_top', r.maxsim_bit_top,
        'maxsim_top', r.maxsim_top, 'token_precision', g.token_precision, 'token_dims', g.token_dims, 'token_pool', g.token_pool,
        'timeout', r.timeout, 'text_search_config', r.text_search_config, 'grace_period', r.grace_period,
        'blend', r.blend, 'log_sample', r.log_sample, 'log_retention', r.log_retention);
END
$$;
COMMENT ON FUNCTION settings(text) IS 'A reranker''s settings, named as the arguments of create_reranker';

-- Where a reranker differs from what create_reranker would make of the wanted arguments: {"candidates": {"present": 100, "wanted": 200}}.
-- The defaults are those of create_reranker itself; texts are compared as Postgres reads them.
CREATE OR REPLACE FUNCTION _changes(name text, wanted jsonb) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    present jsonb := settings(name);
    columns text[] := CASE WHEN jsonb_typeof(wanted -> 'text_columns') = 'array' THEN ARRAY(SELECT jsonb_array_elements_text(wanted -> 'text_columns')) END;
    changes jsonb := '{}';
    argument record;
    value jsonb;
BEGIN
    FOR argument IN
        SELECT a.name, a.type, pg_get_function_arg_default(p.oid, a.i::int) AS preset
        FROM pg_proc p CROSS JOIN LATERAL unnest(p.proargnames, p.proargtypes::oid[]) WITH ORDINALITY a (name, type, i)
        WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = 'create_reranker' AND a.name NOT IN ('name', 'text_columns', 'text_expression')
    LOOP
        EXECUTE format('SELECT to_jsonb(%s)', CASE WHEN wanted ? argument.name
            THEN format('%L::%s', wanted ->> argument.name, argument.type::regtype) ELSE argument.preset END) INTO value;
        IF argument.name = 'source' THEN
            value := (SELECT to_jsonb(format('%I.%I', n.nspname, c.relname)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE c.oid = (wanted ->> 'source')::regclass);
        END IF;
        IF coalesce(value, 'null') <> present -> argument.name THEN
            changes := changes || jsonb_build_object(argument.name, jsonb_build_object('present', present -> argument.name, 'wanted', value));
        END IF;
    END LOOP;
    IF _text_expression((wanted ->> 'source')::regclass, columns, wanted ->> 'text_expression')
        <> (_newest(name)).text_expression THEN
        changes := changes || jsonb_build_object(
            'text_columns', jsonb_build_object('present', present -> 'text_columns', 'wanted', columns),
            'text_expression', jsonb_build_object('present', present -> 'text_expression', 'wanted', wanted -> 'text_expression'));
    END IF;
    RETURN changes;
END
$$;
