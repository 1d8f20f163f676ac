-- 0.1.0 to 0.2.0: settings() tells what a reranker was made with, feedback is collected, models have measures, and a generation is
-- kept for a while after another took over.

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
COMMENT ON FUNCTION schema_version() IS 'Version of the installed schema';

ALTER TABLE models ADD COLUMN measures jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(measures) = 'object');
COMMENT ON COLUMN models.measures IS 'How good it is and on what: what `pgrerank gate` found, for example';
ALTER TABLE rerankers ADD COLUMN grace_period interval NOT NULL DEFAULT '1 day';
COMMENT ON COLUMN rerankers.grace_period IS 'How long a generation is kept current after another took over, for rollback_reranker';
ALTER TABLE generations ADD COLUMN text_columns text[], ADD COLUMN retired_at timestamptz;
COMMENT ON COLUMN generations.text_columns IS 'The columns that text_expression was made of; NULL where it was given itself';
COMMENT ON COLUMN generations.retired_at IS 'When another took over from it; it is dropped after the reranker''s grace_period';

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

-- No foreign key: clicks outlive their reranker, and one made again by that name takes them up.
CREATE TABLE feedback (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reranker text NOT NULL,
    query text NOT NULL CHECK (query ~ '\S' AND length(query) <= 10000),
    key text NOT NULL,
    relevance real NOT NULL CHECK (relevance BETWEEN 0 AND 1),
    given_by name NOT NULL DEFAULT current_user,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX feedback_reranker ON feedback (reranker);
COMMENT ON TABLE feedback IS 'How relevant people found documents for their queries';
COMMENT ON COLUMN feedback.relevance IS 'From 0 (no answer) to 1 (an answer)';

DO $$
DECLARE
    relation regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank') THEN
        FOREACH relation IN ARRAY '{feedback,feedback_id_seq}'::regclass[] LOOP
            PERFORM pg_extension_config_dump(relation, '');
        END LOOP;
    END IF;
END
$$;

-- These take or give more than before.
DROP FUNCTION register_model, create_reranker, alter_reranker;
DROP VIEW status;
DROP FUNCTION _status;

-- Registers a model, or changes one that no reranker uses yet.
CREATE OR REPLACE FUNCTION register_model(
    name text,
    kind text,
    source text,
    dims int DEFAULT NULL,
    loader text DEFAULT NULL,
    revision text DEFAULT NULL,
    max_tokens int DEFAULT NULL,
    options jsonb DEFAULT '{}',
    measures jsonb DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    wanted models;
    present models;
BEGIN
    wanted := (register_model.name, register_model.kind,
        coalesce(register_model.loader, CASE register_model.kind
            WHEN 'embedding' THEN 'sentence_transformer'
            WHEN 'late_interaction' THEN 'multi_vector_encoder'
            ELSE 'cross_encoder' END),
        register_model.source, register_model.revision, register_model.dims, register_model.max_tokens,
        coalesce(register_model.options, '{}'), now(), coalesce(register_model.measures, '{}'));
    SELECT * INTO present FROM models m WHERE m.name = register_model.name;
    IF FOUND AND (present.kind, present.loader, present.source, present.revision, present.dims, present.options)
        IS NOT DISTINCT FROM (wanted.kind, wanted.loader, wanted.source, wanted.revision, wanted.dims, wanted.options) THEN
        UPDATE models m SET measures = m.measures || wanted.measures WHERE m.name = wanted.name;
        RETURN;
    END IF;
    DELETE FROM models m WHERE m.name = register_model.name;
    INSERT INTO models SELECT wanted.*;
EXCEPTION WHEN foreign_key_violation THEN
    RAISE EXCEPTION 'model "%" is used by a reranker and can''t be changed: its stored vectors would no longer fit', register_model.name
        USING ERRCODE = 'dependent_objects_still_exist',
              HINT = 'Register the new one under another name and call pgrerank.alter_reranker.';
END
$$;
COMMENT ON FUNCTION register_model IS 'Registers a model: name, kind (embedding, late_interaction, cross_encoder), where it comes from';

-- The rules that a reranker's settings obey, whether stored or given with one call.
CREATE OR REPLACE FUNCTION _check_settings(r rerankers) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    broken record;
BEGIN
    SELECT * INTO broken FROM (VALUES
        ('name', r.name, r.name ~ '^[a-z_][a-z0-9_]{0,39}$', 'a lower-case letter or _, then up to 39 more of these or digits'),
        ('distance', r.distance, r.distance IN ('cosine', 'inner_product', 'l2'), 'cosine, inner_product or l2'),
        ('candidates', r.candidates::text, r.candidates BETWEEN 1 AND 100000, '1 to 100000'),
        ('maxsim_bit_top', r.maxsim_bit_top::text, r.maxsim_bit_top IS NULL OR r.maxsim_bit_top BETWEEN 1 AND 100000, '1 to 100000'),
        ('maxsim_top', r.maxsim_top::text, r.maxsim_top BETWEEN 1 AND 1000, '1 to 1000'),
        ('timeout', r.timeout::text, r.timeout BETWEEN '1 ms' AND '10 min', '1 ms to 10 min'),
        ('grace_period', r.grace_period::text, r.grace_period BETWEEN '0' AND '1 year', '0 to 1 year')) rules (setting, value, holds, wanted)
    WHERE holds IS NOT TRUE;
    IF FOUND THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": %s is %s, wanted %s', r.name, broken.setting, coalesce(quote_literal(broken.value), 'NULL'), broken.wanted));
    END IF;
END
$$;

-- The generation that alter_reranker starts from: the one in use, or the one that is being made to follow it.
CREATE OR REPLACE FUNCTION _newest(reranker text) RETURNS generations
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT * FROM generations g WHERE g.reranker = $1 AND g.retired_at IS NULL ORDER BY g.number DESC LIMIT 1 $$;

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
    text_search_config regconfig DEFAULT 'simple',
    grace_period interval DEFAULT '1 day'
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
        cross_encoder_model, candidates, maxsim_bit_top, maxsim_top, timeout, text_search_config, 1, now(), grace_period);
    PERFORM _check_settings(reranker);
    generation := (create_reranker.name, 1, '', embedding_model, late_interaction_model,
        token_precision, token_dims, token_pool, maxsim_bit_top IS NOT NULL, NULL, now(), text_columns, NULL);
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
COMMENT ON FUNCTION create_reranker IS 'Creates a reranker over a table: side table, triggers, and the function pgrerank.NAME_search';

-- NULL leaves a setting as it is; '' as a model leaves the stage out, as does 0 for maxsim_bit_top; 0 for token_dims means the
-- model's own. What stored vectors depend on starts a new generation, which takes over once it is complete; searches go on
-- with the old one until then, which is kept for grace_period after. So does token_dims given again, where its projection was fitted on few documents.
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
    timeout interval DEFAULT NULL,
    grace_period interval DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    reranker rerankers := _reranker(name);
    present generations := _newest(name);
    wanted generations;
BEGIN
    reranker.cross_encoder_model := nullif(coalesce(alter_reranker.cross_encoder_model, reranker.cross_encoder_model), '');
    reranker.candidates := coalesce(alter_reranker.candidates, reranker.candidates);
    reranker.maxsim_bit_top := nullif(coalesce(alter_reranker.maxsim_bit_top, reranker.maxsim_bit_top), 0);
    reranker.maxsim_top := coalesce(alter_reranker.maxsim_top, reranker.maxsim_top);
    reranker.timeout := coalesce(alter_reranker.timeout, reranker.timeout);
    reranker.grace_period := coalesce(alter_reranker.grace_period, reranker.grace_period);
    PERFORM _check_settings(reranker);
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
    UPDATE rerankers r SET (cross_encoder_model, candidates, maxsim_bit_top, maxsim_top, timeout, grace_period)
        = (reranker.cross_encoder_model, reranker.candidates, reranker.maxsim_bit_top, reranker.maxsim_top, reranker.timeout, reranker.grace_period)
    WHERE r.name = reranker.name;
    IF wanted IS DISTINCT FROM present THEN
        wanted.number := (SELECT max(g.number) + 1 FROM generations g WHERE g.reranker = reranker.name);
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
COMMENT ON FUNCTION alter_reranker IS 'Changes a reranker; NULL leaves a setting as it is';

-- Undoes the last change of what is stored. A generation that is being made is given up; else the one retired last, kept
-- current all the while, takes over again in this transaction, and the one in use is retired in its place.
CREATE OR REPLACE FUNCTION rollback_reranker(name text) RETURNS int
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    r rerankers := _reranker(name);
    newest generations;
    previous int;
BEGIN
    PERFORM FROM rerankers x WHERE x.name = r.name FOR UPDATE;
    r := _reranker(name);
    newest := _newest(name);
    IF newest.number <> r.generation THEN
        DELETE FROM generations g WHERE (g.reranker, g.number) = (r.name, newest.number);
        PERFORM _drop_stale_sides(r.name);
        RETURN r.generation;
    END IF;
    previous := (SELECT g.number FROM generations g WHERE g.reranker = r.name AND g.retired_at IS NOT NULL ORDER BY g.retired_at DESC LIMIT 1);
    IF previous IS NULL THEN
        PERFORM _fail('object_not_in_prerequisite_state', format('reranker "%s" has no generation before %s to go back to', r.name, r.generation),
            format('One is kept for %s (grace_period) after another took over. Name what it had by pgrerank.alter_reranker, to encode it again.', r.grace_period));
    END IF;
    UPDATE generations g SET retired_at = CASE WHEN g.number <> previous THEN now() END
    WHERE g.reranker = r.name AND g.number IN (previous, r.generation);
    UPDATE rerankers x SET generation = previous WHERE x.name = r.name;
    RETURN previous;
END
$$;
COMMENT ON FUNCTION rollback_reranker IS 'Goes back to the generation before, or gives up the one being made; returns the one in use';

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
        'timeout', r.timeout, 'text_search_config', r.text_search_config, 'grace_period', r.grace_period);
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

-- As the caller: who can't see a document can't judge it, and learns no more than that.
CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key text, relevance double precision DEFAULT 1) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _reranker(reranker);
    known boolean;
BEGIN
    IF NOT has_table_privilege('pgrerank.feedback', 'INSERT') THEN
        PERFORM _fail('insufficient_privilege', format('role %s may not give feedback', current_user),
            format('Have the owner run: GRANT INSERT ON pgrerank.feedback TO %I;', current_user));
    ELSIF coalesce(query, '') !~ '\S' OR length(query) > 10000 THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": the query of a feedback has %s characters, wanted a text of up to 10000', r.name, coalesce(length(query), 0)));
    ELSIF relevance IS NULL OR relevance NOT BETWEEN 0 AND 1 THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": relevance is %s, wanted 0 (no answer) to 1 (an answer)', r.name, coalesce(relevance::text, 'NULL')));
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s d WHERE d.%I = $1::%s)', r.source, r.key_column, r.key_type) INTO known USING key;
    IF NOT known THEN
        PERFORM _fail('no_data_found', format('reranker "%s": there is no document %s in %s, or role %s can''t see it', r.name, coalesce(quote_literal(key), 'NULL'), r.source, current_user));
    END IF;
    INSERT INTO feedback (reranker, query, key, relevance) VALUES (reranker, query, key, relevance);
END
$$;
COMMENT ON FUNCTION feedback(text, text, text, double precision) IS 'Remembers how relevant a document was to a query, from 0 to 1';

CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key bigint, relevance double precision DEFAULT 1) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT feedback(reranker, query, key::text, relevance) $$;
COMMENT ON FUNCTION feedback(text, text, bigint, double precision) IS 'Remembers how relevant a document was to a query, from 0 to 1';

CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key uuid, relevance double precision DEFAULT 1) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT feedback(reranker, query, key::text, relevance) $$;
COMMENT ON FUNCTION feedback(text, text, uuid, double precision) IS 'Remembers how relevant a document was to a query, from 0 to 1';

-- Feedback with the texts, one row for each query and document. For those who see all documents: to others, some would
-- seem gone.
CREATE OR REPLACE FUNCTION judged(reranker text) RETURNS TABLE (query text, key text, relevance real, given bigint, content text)
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    r rerankers := _reranker(judged.reranker);
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT f.query, f.key, f.relevance, f.given, d.content FROM '
        '(SELECT btrim(query) AS query, key, avg(relevance)::real AS relevance, count(*) AS given, min(id) AS first FROM feedback WHERE reranker = $1 GROUP BY 1, 2) f '
        'LEFT JOIN (SELECT %I::text AS key, (%s) AS content FROM %s) d ON d.key = f.key ORDER BY f.first',
        r.key_column, (SELECT g.text_expression FROM generations g WHERE (g.reranker, g.number) = (r.name, r.generation)), r.source)
    USING r.name;
END
$$;
COMMENT ON FUNCTION judged IS 'Feedback as training data: mean relevance by query and document, with the document''s text';

-- In one transaction: a search sees the old generation or the new, whole. The old one is kept for rollback_reranker.
CREATE OR REPLACE FUNCTION _switch_when_complete(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
#variable_conflict use_column
DECLARE
    newest int := (_newest(reranker)).number;
BEGIN
    PERFORM FROM rerankers r WHERE r.name = _switch_when_complete.reranker AND r.generation < newest FOR UPDATE;
    IF FOUND AND NOT EXISTS (SELECT FROM pending p
        WHERE p.reranker = _switch_when_complete.reranker AND p.generation = newest AND p.failed_at IS NULL) THEN
        UPDATE rerankers r SET generation = newest WHERE r.name = _switch_when_complete.reranker;
        UPDATE generations g SET retired_at = now() WHERE g.reranker = _switch_when_complete.reranker AND g.number < newest;
    END IF;
    PERFORM _drop_retired(reranker);
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

-- Searches hold their generation until their transaction ends. Waiting for one would make all new ones wait behind
-- us, so give up soon; whoever next finds the queue empty tries again.
CREATE OR REPLACE FUNCTION _drop_retired(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM generations g USING rerankers r
    WHERE g.reranker = _drop_retired.reranker AND r.name = g.reranker AND g.retired_at + r.grace_period <= clock_timestamp();
    IF FOUND THEN
        PERFORM _drop_stale_sides(reranker);
    END IF;
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

CREATE OR REPLACE FUNCTION _status() RETURNS TABLE (
    reranker text, source regclass, generation int, next_generation int, source_rows bigint, encoded bigint, pending bigint, failed bigint,
    oldest_pending interval, last_error text, previous_generation int, previous_until timestamptz
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    r rerankers;
BEGIN
    FOR r IN SELECT * FROM rerankers x ORDER BY x.name LOOP
        reranker := r.name;
        source := r.source;
        generation := r.generation;
        next_generation := nullif((_newest(r.name)).number, r.generation);
        SELECT g.number, g.retired_at + r.grace_period INTO previous_generation, previous_until
        FROM generations g WHERE g.reranker = r.name AND g.retired_at IS NOT NULL ORDER BY g.retired_at DESC LIMIT 1;
        source_rows := NULL;
        encoded := NULL;
        IF EXISTS (SELECT FROM pg_class c WHERE c.oid = r.source) THEN
            EXECUTE format('SELECT count(*) FROM %s', r.source) INTO source_rows;
            EXECUTE format('SELECT count(*) FROM %s', _side(r.name, coalesce(next_generation, r.generation))) INTO encoded;
        END IF;
        SELECT count(*) FILTER (WHERE p.failed_at IS NULL), count(*) FILTER (WHERE p.failed_at IS NOT NULL),
               now() - min(p.enqueued_at) FILTER (WHERE p.failed_at IS NULL),
               (array_agg(p.key || ': ' || p.last_error ORDER BY p.failed_at DESC NULLS LAST) FILTER (WHERE p.last_error IS NOT NULL))[1]
        INTO pending, failed, oldest_pending, last_error
        FROM pending p WHERE p.reranker = r.name AND p.generation = coalesce(next_generation, r.generation);
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW status AS SELECT * FROM _status();
COMMENT ON VIEW status IS 'Each reranker''s source rows, encoded and pending documents, failures with the last error; of the next generation while one is being made; the generation that rollback_reranker goes back to';
