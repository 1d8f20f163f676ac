-- What a reranker was made with, in the words of create_reranker: for those who compare a declaration with it.

-- Columns of a key as they have to be declared: NULL where they are the primary key's.
CREATE OR REPLACE FUNCTION _declared_key(_source regclass, _columns text[]) RETURNS text[]
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT nullif(_columns, _primary_key(_source)) $$;

CREATE OR REPLACE FUNCTION settings(reranker text, generation int DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _reranker(reranker);
    described generations := CASE WHEN generation IS NULL THEN _newest_generation(target.name)
        ELSE _known_generation(target.name, generation) END;
    stored jsonb;
BEGIN
    IF described.text_columns IS NOT NULL THEN
        described.text_expression := NULL;
    END IF;
    stored := to_jsonb(target) || to_jsonb(described)
        || jsonb_build_object('key_columns', _declared_key(target.source, target.key_columns));
    RETURN jsonb_build_object('source', _qualified(target.source)) || (
        SELECT jsonb_object_agg(s.setting, stored -> s.setting) FROM _settings() s);
END
$$;
COMMENT ON FUNCTION settings IS
    'A reranker''s settings, named as the arguments of create_reranker; of its newest generation, or of the one given';

-- Returns a generation of a reranker, or raises an error that says which there are.
CREATE OR REPLACE FUNCTION _known_generation(_reranker text, _number int) RETURNS generations
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    stored generations := _generation(_reranker, _number);
BEGIN
    IF stored.number IS NULL THEN
        PERFORM _raise('undefined_object', format('reranker "%s" has no generation %s', _reranker, _number),
            format('There are: %s.', (
                SELECT string_agg(g.number::text, ', ' ORDER BY g.number) FROM generations g
                WHERE g.reranker = _reranker)));
    END IF;
    RETURN stored;
END
$$;

-- Values are compared as Postgres reads them, texts as the expressions that they become.
CREATE OR REPLACE FUNCTION setting_changes(reranker text, declared jsonb)
RETURNS TABLE (setting text, present jsonb, wanted jsonb, alterable boolean, cleared_by jsonb)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _followed(reranker);
    stored jsonb := settings(target.name);
    source_table regclass := declared ->> 'source';
    values jsonb := to_jsonb(jsonb_populate_record(NULL::rerankers, declared))
        || to_jsonb(jsonb_populate_record(NULL::generations, declared)) || _presets(declared);
    expression text := _text_expression(source_table,
        (jsonb_populate_record(NULL::generations, declared)).text_columns, declared ->> 'text_expression');
    is_same_text boolean := expression = (_newest_generation(reranker)).text_expression;
    one text;
BEGIN
    FOREACH one IN ARRAY '{language_expression,passage_prefix}'::text[] LOOP
        IF declared ->> one IS NOT NULL THEN
            values := values || jsonb_build_object(one, _checked_expression(source_table, one, declared ->> one));
        END IF;
    END LOOP;
    values := values || jsonb_build_object('key_columns', _declared_key(source_table,
            (jsonb_populate_record(NULL::rerankers, declared)).key_columns))
        || jsonb_build_object('text_search_config', CASE WHEN declared ->> 'text_search_config' IS NULL
        THEN stored ->> 'text_search_config' ELSE _checked_config(declared ->> 'text_search_config') END)
        || jsonb_build_object('partitioned', coalesce(declared -> 'partitioned', stored -> 'partitioned'));
    RETURN QUERY
        SELECT 'source', stored -> 'source', to_jsonb(_qualified(source_table)), false, NULL::jsonb
        WHERE stored ->> 'source' <> _qualified(source_table);
    RETURN QUERY
        SELECT s.setting, stored -> s.setting, values -> s.setting, s.alterable, s.cleared_by
        FROM _settings() s
        WHERE CASE WHEN s.setting IN ('text_columns', 'text_expression') THEN NOT is_same_text
            ELSE values -> s.setting IS DISTINCT FROM stored -> s.setting END;
END
$$;
COMMENT ON FUNCTION setting_changes IS
    'Where a reranker differs from what create_reranker would make of the arguments given as JSON';

-- The presets of the settings that some values leave out, as stored settings would show them.
CREATE OR REPLACE FUNCTION _presets(_values jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    presets jsonb;
BEGIN
    EXECUTE (
        SELECT format('SELECT jsonb_build_object(%s)', string_agg(
            format('%L, (%s)::%s', s.setting, coalesce(s.preset, 'NULL'), s.type), ', '))
        FROM _settings() s WHERE NOT _values ? s.setting) INTO presets;
    RETURN presets;
END
$$;
