-- create_reranker, alter_reranker, drop_reranker. One call is one statement: an error leaves nothing behind.
-- Settings go through as JSON by name; jsonb_populate_record puts each into its column.

-- create_reranker(reranker, source, SETTING => …) and alter_reranker(reranker, SETTING => …): their arguments are the
-- settings. To alter, NULL leaves a setting as it is, and the setting's cleared_by makes it NULL: '' a model
-- and language_expression, 0 maxsim_bit_top and token_dims.
DO $do$
DECLARE
    body text := $body$
        LANGUAGE plpgsql
        SET search_path FROM CURRENT
        AS $$
        BEGIN
            PERFORM %s(%s, jsonb_build_object(%s));
        END
        $$ $body$;
BEGIN
    PERFORM _define_function('create_reranker',
        'reranker text, source regclass, ' || string_agg(
            format('%I %s DEFAULT %s', s.setting, s.type, coalesce(s.preset, 'NULL')), ', ' ORDER BY s.place),
        'void',
        format(body, '_create_reranker', 'reranker, source',
            string_agg(format('%1$L, %1$I', s.setting), ', ' ORDER BY s.place)))
    FROM _settings() s;
    PERFORM _define_function('alter_reranker',
        'reranker text, ' || string_agg(format('%I %s DEFAULT NULL', s.setting, s.type), ', ' ORDER BY s.place),
        'void',
        format(body, '_alter_reranker', 'reranker', string_agg(format('%1$L, %1$I', s.setting), ', ' ORDER BY s.place)))
    FROM _settings() s WHERE s.alterable;
END
$do$;
COMMENT ON FUNCTION create_reranker IS
    'Creates a reranker over a table or view: side table, triggers, and the function pgrerank.NAME_search';
COMMENT ON FUNCTION alter_reranker IS 'Changes a reranker; NULL leaves a setting as it is';

-- Ends what a role may not do to a reranker.
CREATE OR REPLACE FUNCTION _check_right(_what text, _name text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NOT has_table_privilege('pgrerank.rerankers', 'UPDATE') THEN
        PERFORM _raise('insufficient_privilege', format('role %I may not %s reranker "%s"', current_user, _what, _name),
            (SELECT format('Have %I do it, who owns pgrerank''s tables, or become a member of that role.',
                pg_get_userbyid(c.relowner)) FROM pg_class c WHERE c.oid = 'pgrerank.rerankers'::regclass));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _create_reranker(_name text, _source regclass, _values jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    reranker rerankers := jsonb_populate_record(NULL::rerankers, _values);
    generation generations := jsonb_populate_record(NULL::generations, _values);
BEGIN
    PERFORM _check_right('create', _name);
    PERFORM _check_new(_name, _source);
    reranker.name := _name;
    reranker.source := _source;
    reranker.key_columns := _source_key(_source, reranker.key_columns);
    reranker.generation := 1;
    reranker.source_names := _names_of(_source);
    reranker.created_at := now();
    generation.reranker := _name;
    generation.number := 1;
    generation.token_bits := reranker.maxsim_bit_top IS NOT NULL;
    generation.created_at := now();
    generation.partitioned := coalesce(generation.partitioned, _is_partitioned(_source)
        AND generation.tenant_column IS NULL AND (SELECT count(*) <= 100 FROM _leaves(_source)));
    PERFORM _check_settings(reranker, generation);
    PERFORM _check_models(reranker, generation);
    reranker.key_type := _create_key_type(reranker);
    PERFORM _check_all_keys(reranker);
    generation.text_expression := _text_expression(_source, generation.text_columns, generation.text_expression);
    generation := _with_expressions(_source, generation);
    INSERT INTO rerankers SELECT reranker.*;
    INSERT INTO generations SELECT generation.*;
    PERFORM _create_side_tables(reranker, generation);
    IF _is_table(_source) THEN
        PERFORM _create_triggers(reranker, _source);
        PERFORM _complete_triggers(reranker);
    END IF;
    PERFORM _create_search(reranker);
    PERFORM enqueue(_name);
    PERFORM _warn_of_a_small_sample(generation);
END
$$;

CREATE OR REPLACE FUNCTION _check_new(_name text, _source regclass) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _source IS NULL THEN
        PERFORM _raise('null_value_not_allowed', format('reranker "%s": the source table is NULL', _name));
    ELSIF EXISTS (SELECT FROM rerankers r WHERE r.name = _name) THEN
        PERFORM _raise('duplicate_object', format('reranker "%s" already exists', _name),
            'Change it by pgrerank.alter_reranker, or remove it by pgrerank.drop_reranker.');
    ELSIF EXISTS (
        SELECT FROM pg_proc p WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = _name || '_search') THEN
        PERFORM _raise('reserved_name', format(
            '"%1$s" can''t name a reranker: pgrerank has a function %1$s_search of its own', _name));
    END IF;
END
$$;

-- What stored vectors depend on starts a new generation, which takes over once it is complete; searches go on with
-- the old one until then, which is kept for grace_period after. So does token_dims given again, where its projection
-- was fitted on few documents.
CREATE OR REPLACE FUNCTION _alter_reranker(_name text, _values jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    changes jsonb := _overlay(_values);
    reranker rerankers := jsonb_populate_record(_followed(_name), changes);
    present generations := _newest_generation(_name);
    changed generations := jsonb_populate_record(present, changes - '{text_columns,text_expression}'::text[]);
BEGIN
    PERFORM _check_right('alter', _name);
    PERFORM _check_source(reranker);
    changed.token_bits := reranker.maxsim_bit_top IS NOT NULL;
    PERFORM _check_settings(reranker, changed);
    PERFORM _check_models(reranker, changed);
    IF changes ?| '{text_columns,text_expression}' THEN
        changed := jsonb_populate_record(changed, '{"text_columns": null, "text_expression": null}' || changes);
        changed.text_expression := _text_expression(reranker.source, changed.text_columns, changed.text_expression);
    END IF;
    IF changes ?| '{text_search_config,language_expression,passage_prefix}' THEN
        changed := _with_expressions(reranker.source, changed);
    END IF;
    IF changes -> 'token_dims' > '0' AND _is_badly_fitted(present) THEN
        changed.projection := NULL;
    END IF;
    PERFORM _update_reranker(reranker);
    IF changed IS DISTINCT FROM present THEN
        changed := _start_generation(reranker, changed);
    END IF;
    PERFORM enqueue(_name);
    IF changed.number > present.number THEN
        PERFORM _warn_of_a_small_sample(changed);
    END IF;
END
$$;

-- The generation with its languages and its prefix checked.
CREATE OR REPLACE FUNCTION _with_expressions(_source regclass, _generation generations) RETURNS generations
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    _generation.text_search_config := _checked_config(_generation.text_search_config);
    IF _generation.language_expression IS NOT NULL THEN
        _generation.language_expression := _checked_expression(
            _source, 'language_expression', _generation.language_expression);
    END IF;
    IF _generation.passage_prefix IS NOT NULL THEN
        _generation.passage_prefix := _checked_expression(_source, 'passage_prefix', _generation.passage_prefix);
    END IF;
    RETURN _generation;
END
$$;

-- Values as they are laid over what is stored: without those that are NULL, and NULL for those that clear a setting.
CREATE OR REPLACE FUNCTION _overlay(_values jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT coalesce(jsonb_object_agg(v.key, CASE WHEN v.value = s.cleared_by THEN 'null' ELSE v.value END), '{}')
    FROM jsonb_each(_values) v JOIN _settings() s ON s.setting = v.key
    WHERE v.value <> 'null'
$$;

-- Writes all settings of a reranker.
CREATE OR REPLACE FUNCTION _update_reranker(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    columns text := (
        SELECT string_agg(quote_ident(s.setting), ', ') FROM _settings() s
        WHERE s.kept_in = 'rerankers' AND s.alterable);
BEGIN
    EXECUTE format($sql$
        UPDATE rerankers r SET (%1$s) = (SELECT %1$s FROM (SELECT ($1).*) changed) WHERE r.name = ($1).name
        $sql$, columns)
    USING _reranker;
END
$$;

-- Makes a generation to follow the one in use; one that was being made is given up for it.
CREATE OR REPLACE FUNCTION _start_generation(_reranker rerankers, _generation generations) RETURNS generations
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    _generation.number := (SELECT max(g.number) + 1 FROM generations g WHERE g.reranker = _reranker.name);
    _generation.projection := NULL;
    _generation.created_at := now();
    INSERT INTO generations SELECT _generation.*;
    PERFORM _create_side_tables(_reranker, _generation);
    DELETE FROM generations g
    WHERE g.reranker = _reranker.name AND g.number NOT IN (_generation.number, _reranker.generation);
    PERFORM _drop_stale_side_tables(_reranker.name);
    RETURN _generation;
END
$$;

-- Undoes the last change of what is stored. A generation that is being made is given up; else the one retired last,
-- kept current all the while, takes over again in this transaction, and the one in use is retired in its place.
CREATE OR REPLACE FUNCTION rollback_reranker(reranker text) RETURNS int
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _reranker(reranker);
    newest int;
    previous int;
BEGIN
    PERFORM _check_right('roll back', target.name);
    SELECT * INTO target FROM rerankers r WHERE r.name = target.name FOR UPDATE;
    newest := (_newest_generation(target.name)).number;
    IF newest <> target.generation THEN
        DELETE FROM generations g WHERE (g.reranker, g.number) = (target.name, newest);
        PERFORM _drop_stale_side_tables(target.name);
        RETURN target.generation;
    END IF;
    previous := (
        SELECT g.number FROM generations g
        WHERE g.reranker = target.name AND g.retired_at IS NOT NULL ORDER BY g.retired_at DESC LIMIT 1);
    IF previous IS NULL THEN
        PERFORM _raise('object_not_in_prerequisite_state',
            format('reranker "%s" has no generation before %s to go back to', target.name, target.generation),
            format('One is kept for %s (grace_period) after another took over. '
                'Name what it had by pgrerank.alter_reranker, to encode it again.', target.grace_period));
    END IF;
    UPDATE generations g SET retired_at = CASE WHEN g.number <> previous THEN now() END
    WHERE g.reranker = target.name AND g.number IN (previous, target.generation);
    UPDATE rerankers r SET generation = previous WHERE r.name = target.name;
    RETURN previous;
END
$$;
COMMENT ON FUNCTION rollback_reranker IS
    'Goes back to the generation before, or gives up the one being made; returns the one in use';

CREATE OR REPLACE FUNCTION drop_reranker(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _reranker(reranker);
BEGIN
    PERFORM _check_right('drop', target.name);
    PERFORM _have_alone(target);
    PERFORM _drop_triggers(target, t.part) FROM _triggered(target) t (part);
    PERFORM _drop_functions(target.name || '_search');
    PERFORM _drop_functions(target.name || '_search_many');
    DELETE FROM rerankers r WHERE r.name = target.name;
    DELETE FROM searches s WHERE s.reranker = target.name;
    PERFORM _forget_stats(target.name);
    PERFORM _drop_stale_side_tables(target.name);
    IF cardinality(target.key_columns) > 1 THEN
        EXECUTE format('DROP TYPE %s', target.key_type);
    END IF;
END
$$;
COMMENT ON FUNCTION drop_reranker IS
    'Removes a reranker with its side tables, triggers and search function; the source table stays';

-- The rules that bind settings to models, to the source, and to each other. Each raises its own error.
CREATE OR REPLACE FUNCTION _check_models(_reranker rerankers, _generation generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    embedding models;
    late_interaction models;
    column_dims int;
    tenant_type regtype := _tenant_type(_reranker.source, _generation);
    broken record;
BEGIN
    IF _generation.embedding_model IS NOT NULL THEN
        embedding := _model(_generation.embedding_model, 'embedding');
    END IF;
    IF _generation.late_interaction_model IS NOT NULL THEN
        late_interaction := _model(_generation.late_interaction_model, 'late_interaction');
    END IF;
    IF _reranker.cross_encoder_model IS NOT NULL THEN
        PERFORM _model(_reranker.cross_encoder_model, 'cross_encoder');
    END IF;
    IF _reranker.cross_encoder_fallback IS NOT NULL THEN
        PERFORM _model(_reranker.cross_encoder_fallback, 'cross_encoder');
    END IF;
    IF _reranker.listwise_model IS NOT NULL THEN
        PERFORM _model(_reranker.listwise_model, 'listwise');
    END IF;
    PERFORM _check_instruction(_reranker, _generation);
    IF _reranker.embedding_column IS NOT NULL THEN
        column_dims := (_embedding_column(_reranker.source, _reranker.embedding_column)).dims;
    END IF;
    PERFORM FROM _signals_sql(_reranker.source, _reranker.signals);
    PERFORM _check_group(_reranker);
    PERFORM _is_diverse(_reranker, _generation);
    SELECT * INTO broken FROM (VALUES
        (late_interaction.name IS NULL
            AND (_generation.token_dims IS NOT NULL OR _generation.token_pool > 1 OR _generation.token_bits),
            'invalid_parameter_value',
            ' has no late_interaction_model: token_dims, token_pool and maxsim_bit_top want one', NULL),
        (_generation.token_dims NOT BETWEEN 8 AND late_interaction.dims,
            'invalid_parameter_value',
            format(': token_dims is %s, expected 8 to %s, the dimensions of model "%s"',
                _generation.token_dims, late_interaction.dims, late_interaction.name), NULL),
        (_generation.passage_overlap > _generation.passage_size / 4,
            'invalid_parameter_value',
            format(': passage_overlap is %s, expected up to %s, a quarter of passage_size',
                _generation.passage_overlap, _generation.passage_size / 4), NULL),
        (_generation.token_bits AND _generation.token_precision = 'bit',
            'invalid_parameter_value',
            ' has token_precision bit: maxsim_bit_top would score the same bits twice',
            'Leave maxsim_bit_top out, or choose token_precision int8.'),
        (_generation.tenant_column IS NOT NULL AND (embedding.name IS NULL OR column_dims IS NOT NULL),
            'feature_not_supported',
            format(' has tenant_column %s, whose indexes are over embeddings that pgrerank stores: it stores none',
                _generation.tenant_column),
            'Name an embedding_model and no embedding_column, or leave tenant_column out.'),
        (_generation.partitioned AND NOT _is_partitioned(_reranker.source),
            'invalid_parameter_value',
            format(': partitioned is true, and %s is not partitioned', _described(_reranker.source)),
            'Leave it out.'),
        (_generation.partitioned AND _generation.tenant_column IS NOT NULL,
            'feature_not_supported',
            format(' has tenant_column %s, and is partitioned: a partition has an index of its own already',
                _generation.tenant_column),
            'Leave tenant_column out, or say partitioned => false.'),
        (column_dims <> embedding.dims,
            'datatype_mismatch',
            format(' can''t use column %s.%s: it has %s dimensions, model "%s" has %s', _reranker.source,
                quote_ident(_reranker.embedding_column), column_dims, embedding.name, embedding.dims),
            'Name the model that made the column''s vectors, or leave embedding_column out.')
    ) rules (is_broken, code, message, hint)
    WHERE rules.is_broken LIMIT 1;
    IF FOUND THEN
        PERFORM _raise(broken.code, format('reranker "%s"%s', _reranker.name, broken.message), broken.hint);
    END IF;
END
$$;

-- How many documents a projection is fitted on: some ten thousand token vectors.
CREATE OR REPLACE FUNCTION _sample_size() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 256 $$;

-- Whether a generation's projection was fitted on fewer documents than that.
CREATE OR REPLACE FUNCTION _is_badly_fitted(_generation generations) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT EXISTS (
        SELECT FROM projections p
        WHERE (p.reranker, p.generation) = (_generation.reranker, _generation.number)
          AND p.documents < _sample_size())
$$;

-- Warns where a new generation's projection would be fitted on few documents: those that are enqueued, which are all.
CREATE OR REPLACE FUNCTION _warn_of_a_small_sample(_generation generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _generation.token_dims IS NOT NULL AND _sample_size() > (
        SELECT count(*) FROM pending p
        WHERE (p.reranker, p.generation) = (_generation.reranker, _generation.number)) THEN
        RAISE WARNING 'reranker "%" has fewer than % documents to fit the projection to % dimensions on',
            _generation.reranker, _sample_size(), _generation.token_dims
            USING HINT = 'Once it has more, give token_dims again by pgrerank.alter_reranker.';
    END IF;
END
$$;
