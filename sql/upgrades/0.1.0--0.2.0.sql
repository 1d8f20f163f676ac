-- 0.1.0 to 0.2.0: a generation keeps the columns that its text was made of, and settings() tells what a reranker was made with.

DO $$
BEGIN
    IF schema_version() <> '0.1.0' THEN
        RAISE EXCEPTION 'the schema pgrerank is of version %: this script upgrades 0.1.0', schema_version()
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION schema_version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT '0.2.0' $$;

ALTER TABLE generations ADD COLUMN text_columns text[];
COMMENT ON COLUMN generations.text_columns IS 'The columns that text_expression was made of; NULL where it was given itself';

-- 0.1.0 wrote title::text for one column and concat_ws(E'\n', title, body) for several: read back what gives the same again.
UPDATE generations g SET text_columns = columns.names
FROM generations h CROSS JOIN LATERAL (
    SELECT array_agg(CASE WHEN c.written LIKE '"%' THEN replace(substring(c.written FROM 2 FOR length(c.written) - 2), '""', '"') ELSE c.written END ORDER BY c.i) AS names,
           count(*) AS count, min(c.written) AS first, string_agg(c.written, ', ' ORDER BY c.i) AS list
    FROM (SELECT m.written[1] AS written, m.i FROM regexp_matches(
            coalesce(substring(h.text_expression FROM '^concat_ws\(E''\\n'', (.*)\)$'), substring(h.text_expression FROM '^(.*)::text$')),
            '("(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)', 'g') WITH ORDINALITY m (written, i)) c) columns
WHERE (g.reranker, g.number) = (h.reranker, h.number)
  AND h.text_expression = CASE columns.count WHEN 1 THEN columns.first || '::text' ELSE format(E'concat_ws(E''\\n'', %s)', columns.list) END
  AND NOT EXISTS (SELECT FROM unnest(columns.names) n (name), rerankers r WHERE r.name = h.reranker
                  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = r.source AND a.attname = n.name));

CREATE OR REPLACE FUNCTION create_reranker(
    name text,
    source regclass,
    text_columns text[] DEFAULT NULL,
    text_expression text DEFAULT NULL,
    embedding_model text DEFAULT NULL,
    late_interaction_model text DEFAULT NULL,
    cross_encoder_model text DEFAULT NULL,
    embedding_column text DEFAULT NULL,
    distance text DEFAULT 'cosine',
    candidates int DEFAULT 100,
    maxsim_bit_top int DEFAULT NULL,
    maxsim_top int DEFAULT 30,
    token_precision text DEFAULT 'int8',
    token_dims int DEFAULT NULL,
    token_pool int DEFAULT 1,
    timeout interval DEFAULT '5 seconds',
    text_search_config regconfig DEFAULT 'simple'
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    key record;
    reranker rerankers;
    generation generations;
BEGIN
    IF source IS NULL THEN
        PERFORM _fail('null_value_not_allowed', format('reranker "%s": the source table is NULL', create_reranker.name));
    ELSIF EXISTS (SELECT FROM rerankers r WHERE r.name = create_reranker.name) THEN
        PERFORM _fail('duplicate_object', format('reranker "%s" already exists', create_reranker.name),
            'Change it by pgrerank.alter_reranker, or remove it by pgrerank.drop_reranker.');
    ELSIF create_reranker.name !~ '_search$' AND EXISTS (
        SELECT FROM pg_proc p WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = create_reranker.name || '_search') THEN
        PERFORM _fail('reserved_name', format('"%s" can''t name a reranker: pgrerank has a function %s_search of its own', create_reranker.name, create_reranker.name));
    END IF;
    key := _source_key(source);
    reranker := (
        create_reranker.name, source, key.key_column, key.key_type, embedding_column, distance,
        cross_encoder_model, candidates, maxsim_bit_top, maxsim_top, timeout, text_search_config, 1, now());
    PERFORM _check_settings(reranker);
    generation := (create_reranker.name, 1, '', embedding_model, late_interaction_model,
        token_precision, token_dims, token_pool, maxsim_bit_top IS NOT NULL, NULL, now(), text_columns);
    PERFORM _check_models(reranker, generation);
    generation.text_expression := _text_expression(source, text_columns, create_reranker.text_expression);
    INSERT INTO rerankers SELECT reranker.*;
    INSERT INTO generations SELECT generation.*;
    PERFORM _create_side(create_reranker.name, 1);
    PERFORM _create_triggers(create_reranker.name);
    PERFORM _create_search(create_reranker.name);
    PERFORM enqueue(create_reranker.name);
    PERFORM _warn_of_a_small_sample(generation);
END
$$;

CREATE OR REPLACE FUNCTION alter_reranker(
    name text,
    text_columns text[] DEFAULT NULL,
    text_expression text DEFAULT NULL,
    embedding_model text DEFAULT NULL,
    late_interaction_model text DEFAULT NULL,
    cross_encoder_model text DEFAULT NULL,
    candidates int DEFAULT NULL,
    maxsim_bit_top int DEFAULT NULL,
    maxsim_top int DEFAULT NULL,
    token_precision text DEFAULT NULL,
    token_dims int DEFAULT NULL,
    token_pool int DEFAULT NULL,
    timeout interval DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    reranker rerankers := _reranker(name);
    present generations;
    wanted generations;
BEGIN
    reranker.cross_encoder_model := nullif(coalesce(alter_reranker.cross_encoder_model, reranker.cross_encoder_model), '');
    reranker.candidates := coalesce(alter_reranker.candidates, reranker.candidates);
    reranker.maxsim_bit_top := nullif(coalesce(alter_reranker.maxsim_bit_top, reranker.maxsim_bit_top), 0);
    reranker.maxsim_top := coalesce(alter_reranker.maxsim_top, reranker.maxsim_top);
    reranker.timeout := coalesce(alter_reranker.timeout, reranker.timeout);
    PERFORM _check_settings(reranker);
    SELECT * INTO present FROM generations g WHERE g.reranker = alter_reranker.name ORDER BY g.number DESC LIMIT 1;
    wanted := present;
    wanted.embedding_model := nullif(coalesce(alter_reranker.embedding_model, present.embedding_model), '');
    wanted.late_interaction_model := nullif(coalesce(alter_reranker.late_interaction_model, present.late_interaction_model), '');
    wanted.token_precision := coalesce(alter_reranker.token_precision, present.token_precision);
    wanted.token_dims := nullif(coalesce(alter_reranker.token_dims, present.token_dims), 0);
    wanted.token_pool := coalesce(alter_reranker.token_pool, present.token_pool);
    wanted.token_bits := reranker.maxsim_bit_top IS NOT NULL;
    IF alter_reranker.token_dims > 0 AND EXISTS (SELECT FROM projections p
        WHERE (p.reranker, p.generation) = (present.reranker, present.number) AND p.documents < _sample_size()) THEN
        wanted.projection := NULL;
    END IF;
    IF alter_reranker.text_columns IS NOT NULL OR alter_reranker.text_expression IS NOT NULL THEN
        wanted.text_expression := _text_expression(reranker.source, alter_reranker.text_columns, alter_reranker.text_expression);
        wanted.text_columns := alter_reranker.text_columns;
    END IF;
    PERFORM _check_models(reranker, wanted);
    UPDATE rerankers r SET (cross_encoder_model, candidates, maxsim_bit_top, maxsim_top, timeout)
        = (reranker.cross_encoder_model, reranker.candidates, reranker.maxsim_bit_top, reranker.maxsim_top, reranker.timeout)
    WHERE r.name = reranker.name;
    IF wanted IS DISTINCT FROM present THEN
        wanted.number := present.number + 1;
        wanted.projection := NULL;
        wanted.created_at := now();
        INSERT INTO generations SELECT wanted.*;
        PERFORM _create_side(reranker.name, wanted.number);
        DELETE FROM generations g WHERE g.reranker = reranker.name AND g.number NOT IN (wanted.number, reranker.generation);
        PERFORM _drop_stale_sides(reranker.name);
    END IF;
    PERFORM enqueue(reranker.name);
    IF wanted.number > present.number THEN
        PERFORM _warn_of_a_small_sample(wanted);
    END IF;
END
$$;

-- Of the newest generation, which alter_reranker starts from.
CREATE OR REPLACE FUNCTION settings(name text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(name);
    g generations;
BEGIN
    SELECT * INTO g FROM generations x WHERE x.reranker = r.name ORDER BY x.number DESC LIMIT 1;
    RETURN jsonb_build_object(
        'source', (SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = r.source),
        'text_columns', g.text_columns, 'text_expression', CASE WHEN g.text_columns IS NULL THEN g.text_expression END,
        'embedding_model', g.embedding_model, 'late_interaction_model', g.late_interaction_model, 'cross_encoder_model', r.cross_encoder_model,
        'embedding_column', r.embedding_column, 'distance', r.distance, 'candidates', r.candidates, 'maxsim_bit_top', r.maxsim_bit_top,
        'maxsim_top', r.maxsim_top, 'token_precision', g.token_precision, 'token_dims', g.token_dims, 'token_pool', g.token_pool,
        'timeout', r.timeout, 'text_search_config', r.text_search_config);
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
        <> (SELECT g.text_expression FROM generations g WHERE g.reranker = _changes.name ORDER BY g.number DESC LIMIT 1) THEN
        changes := changes || jsonb_build_object(
            'text_columns', jsonb_build_object('present', present -> 'text_columns', 'wanted', columns),
            'text_expression', jsonb_build_object('present', present -> 'text_expression', 'wanted', wanted -> 'text_expression'));
    END IF;
    RETURN changes;
END
$$;
