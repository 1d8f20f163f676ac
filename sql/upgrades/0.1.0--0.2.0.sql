-- 0.1.0 to 0.2.0: settings() tells what a reranker was made with, feedback and judgements are collected, models have measures, a
-- generation is kept for a while after another took over, stages can be blended, measured and explained, and searches remembered.

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
ALTER TABLE rerankers ADD COLUMN grace_period interval NOT NULL DEFAULT '1 day', ADD COLUMN blend jsonb,
    ADD COLUMN log_sample real NOT NULL DEFAULT 0, ADD COLUMN log_retention interval NOT NULL DEFAULT '30 days';
COMMENT ON COLUMN rerankers.grace_period IS 'How long a generation is kept current after another took over, for rollback_reranker';
COMMENT ON COLUMN rerankers.blend IS 'Weights by stage: scores are blended; NULL where a later stage overrules the earlier ones';
COMMENT ON COLUMN rerankers.log_sample IS 'Share of searches that pgrerank.searches remembers, from 0 (none) to 1';
COMMENT ON COLUMN rerankers.log_retention IS 'How long it remembers them';
ALTER TYPE candidate ADD ATTRIBUTE blended_score real;
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

CREATE TABLE queries (
    qrels_set text NOT NULL CHECK (qrels_set ~ '^[^[:cntrl:]]{1,100}$'),
    id text NOT NULL CHECK (id <> ''),
    query text NOT NULL CHECK (query ~ '\S' AND length(query) <= 10000),
    PRIMARY KEY (qrels_set, id)
);
COMMENT ON TABLE queries IS 'The queries of each set of judgements';

-- Keys are texts, so that one set serves all rerankers over a table, and judgements outlive documents.
CREATE TABLE qrels (
    qrels_set text NOT NULL,
    query_id text NOT NULL,
    key text NOT NULL,
    relevance int NOT NULL,
    PRIMARY KEY (qrels_set, query_id, key),
    FOREIGN KEY (qrels_set, query_id) REFERENCES queries ON DELETE CASCADE ON UPDATE CASCADE
);
COMMENT ON TABLE qrels IS 'How relevant documents are to the queries of a set';
COMMENT ON COLUMN qrels.key IS 'The document''s key, as text';
COMMENT ON COLUMN qrels.relevance IS '0 or less: not relevant; 1 and more: relevant, the higher the more';

-- No foreign key to rerankers: its lock would make a search wait for whoever swaps a generation.
CREATE TABLE searches (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reranker text NOT NULL,
    generation int NOT NULL,
    query text NOT NULL,
    arguments jsonb NOT NULL,
    keys text[] NOT NULL,
    recall_ranks int[] NOT NULL,
    maxsim_ranks int[] NOT NULL,
    cross_encoder_ranks int[] NOT NULL,
    stage text NOT NULL,
    degraded boolean NOT NULL,
    reason text,
    times jsonb NOT NULL,
    searched_at timestamptz NOT NULL DEFAULT now(),
    searched_by name NOT NULL DEFAULT current_user
);
CREATE INDEX searches_reranker ON searches (reranker, searched_at);
COMMENT ON TABLE searches IS 'A sample of searches, for as long as their reranker''s log_retention says';
COMMENT ON COLUMN searches.arguments IS 'What the call was given besides the query; nothing that was left out';
COMMENT ON COLUMN searches.keys IS 'The documents that it returned, in their order; the ranks beside it are theirs after each stage';
COMMENT ON COLUMN searches.times IS 'Milliseconds by stage';

DO $$
DECLARE
    relation regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank') THEN
        FOREACH relation IN ARRAY '{feedback,feedback_id_seq,queries,qrels,searches,searches_id_seq}'::regclass[] LOOP
            PERFORM pg_extension_config_dump(relation, '');
        END LOOP;
    END IF;
END
$$;

-- These take or give more than before.
DROP FUNCTION register_model, create_reranker, alter_reranker, _rank_by;
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

CREATE OR REPLACE FUNCTION _is_blend(blend jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN jsonb_typeof(blend) = 'object' THEN (
        SELECT coalesce(bool_and(w.key IN ('recall', 'maxsim', 'cross_encoder') AND coalesce((jsonb_path_query_first(w.value, '$ ? (@.type() == "number")'))::numeric BETWEEN 0 AND 1000, false)), false)
            AND bool_or(w.value > '0') FROM jsonb_each(blend) w) ELSE false END
$$;

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
        ('grace_period', r.grace_period::text, r.grace_period BETWEEN '0' AND '1 year', '0 to 1 year'),
        ('blend', r.blend::text, r.blend IS NULL OR _is_blend(r.blend), 'weights by stage, such as {"recall": 0.2, "maxsim": 0.3, "cross_encoder": 0.5}: numbers from 0 to 1000, one of them above 0'),
        ('log_sample', r.log_sample::text, r.log_sample BETWEEN 0 AND 1, '0 to 1'),
        ('log_retention', r.log_retention::text, r.log_retention BETWEEN '1 minute' AND '10 years', '1 minute to 10 years')) rules (setting, value, holds, wanted)
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
    grace_period interval DEFAULT '1 day',
    blend jsonb DEFAULT NULL,
    log_sample double precision DEFAULT 0,
    log_retention interval DEFAULT '30 days'
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
        cross_encoder_model, candidates, maxsim_bit_top, maxsim_top, timeout, text_search_config, 1, now(), grace_period,
        blend, log_sample, log_retention);
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
-- model's own, '{}' as blend that a later stage overrules the earlier ones. What stored vectors depend on starts a new generation, which takes over once it is complete; searches go on
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
    grace_period interval DEFAULT NULL,
    blend jsonb DEFAULT NULL,
    log_sample double precision DEFAULT NULL,
    log_retention interval DEFAULT NULL
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
    reranker.blend := nullif(coalesce(alter_reranker.blend, reranker.blend), '{}');
    reranker.log_sample := coalesce(alter_reranker.log_sample, reranker.log_sample);
    reranker.log_retention := coalesce(alter_reranker.log_retention, reranker.log_retention);
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
    UPDATE rerankers r SET (cross_encoder_model, candidates, maxsim_bit_top, maxsim_top, timeout, grace_period, blend, log_sample, log_retention)
        = (reranker.cross_encoder_model, reranker.candidates, reranker.maxsim_bit_top, reranker.maxsim_top, reranker.timeout, reranker.grace_period,
           reranker.blend, reranker.log_sample, reranker.log_retention)
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

CREATE OR REPLACE FUNCTION drop_reranker(name text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    reranker rerankers := _reranker(name);
    routine regprocedure;
    event text;
BEGIN
    IF EXISTS (SELECT FROM pg_class c WHERE c.oid = reranker.source) THEN
        FOREACH event IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
            EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', _trigger_name(reranker.name, event), reranker.source);
        END LOOP;
    END IF;
    FOR routine IN SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = reranker.name || '_search' LOOP
        EXECUTE format('DROP FUNCTION %s', routine);
    END LOOP;
    DELETE FROM rerankers r WHERE r.name = reranker.name;
    DELETE FROM searches s WHERE s.reranker = drop_reranker.name;
    PERFORM _drop_stale_sides(reranker.name);
END
$$;
COMMENT ON FUNCTION drop_reranker IS 'Removes a reranker with its side tables, triggers and search function; the source table stays';

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

-- Claims documents of one generation. Most claims are many documents that were never tried; one that was tried before
-- comes alone, so that a document which kills workers takes no other with it. A claim ends with its lease or with
-- the session that made it. Documents that have gone or whose text is the one encoded come back as settled. The models
-- say what is to be stored; no embedding where the user keeps one.
CREATE OR REPLACE FUNCTION claim(max_documents int DEFAULT 64, only_reranker text DEFAULT NULL, max_attempts int DEFAULT 3, lease interval DEFAULT '10 minutes')
RETURNS TABLE (
    reranker text, generation int, key text, ticket bigint, content text, content_hash bytea, settled boolean,
    embedding_model text, late_interaction_model text, token_precision text, token_dims int, token_pool int, token_bits boolean, projection text
)
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    alive int[] := ARRAY(SELECT a.pid FROM pg_stat_activity a WHERE a.datname = current_database());
    first pending;
    r rerankers;
    g generations;
    keys text[];
    tickets bigint[];
BEGIN
    UPDATE pending p SET failed_at = now(), last_error = format('no worker survived encoding it, %s times', p.attempts), claimed_by = NULL
    WHERE p.failed_at IS NULL AND p.attempts >= max_attempts AND (p.claimed_by <> ALL (alive) OR p.claimed_until < now());

    SELECT * INTO first FROM pending p
    WHERE p.failed_at IS NULL AND (only_reranker IS NULL OR p.reranker = only_reranker)
      AND (p.claimed_by IS NULL OR p.claimed_by <> ALL (alive) OR p.claimed_until < now())
    ORDER BY p.ticket LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM _switch_when_complete(x.name) FROM rerankers x WHERE only_reranker IS NULL OR x.name = only_reranker;
        PERFORM forget_searches();
        RETURN;
    END IF;

    WITH chosen AS (
        SELECT p.ctid FROM pending p
        WHERE (p.reranker, p.generation) = (first.reranker, first.generation) AND p.failed_at IS NULL
          AND (p.claimed_by IS NULL OR p.claimed_by <> ALL (alive) OR p.claimed_until < now())
          AND CASE WHEN first.attempts > 0 THEN p.key = first.key ELSE p.attempts = 0 END
        ORDER BY p.ticket LIMIT max_documents FOR UPDATE SKIP LOCKED),
    claimed AS (
        UPDATE pending p SET claimed_by = pg_backend_pid(), claimed_until = now() + lease, attempts = p.attempts + 1
        FROM chosen WHERE p.ctid = chosen.ctid RETURNING p.key, p.ticket)
    SELECT array_agg(c.key ORDER BY c.ticket), array_agg(c.ticket ORDER BY c.ticket) INTO keys, tickets FROM claimed c;

    r := _reranker(first.reranker);
    SELECT * INTO g FROM generations x WHERE (x.reranker, x.number) = (first.reranker, first.generation);
    RETURN QUERY EXECUTE format(
        'WITH d AS MATERIALIZED (SELECT %1$I AS key, (%2$s) AS content FROM %3$s WHERE %1$I = ANY ($1::%4$s[])) '
        'SELECT $3, $4, c.key, c.ticket, d.content, _content_hash(d.content), '
        'd.key IS NULL OR s.content_hash IS NOT DISTINCT FROM _content_hash(d.content), $5, $6, $7, $8, $9, $10, $11 '
        'FROM unnest($1, $2) c (key, ticket) LEFT JOIN d ON d.key = c.key::%4$s LEFT JOIN %5$s s ON s.key = d.key',
        r.key_column, g.text_expression, r.source, r.key_type, _side(r.name, g.number))
    USING keys, tickets, r.name, g.number,
        CASE WHEN r.embedding_column IS NULL THEN g.embedding_model END, g.late_interaction_model,
        g.token_precision, g.token_dims, g.token_pool, g.token_bits, g.projection;
END
$$;
COMMENT ON FUNCTION claim IS 'Claims pending documents for the calling worker session';

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

-- Lets an HNSW scan yield n rows, also through a filter; pgrerank.ef_search, where it is set, says how wide it looks. Returns
-- the settings to go back to.
CREATE OR REPLACE FUNCTION _widen_hnsw(n int) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    wanted jsonb := jsonb_build_object('hnsw.ef_search',
        coalesce(nullif(current_setting('pgrerank.ef_search', true), '')::int, least(greatest(n, 40), 1000)));
    before jsonb;
BEGIN
    PERFORM '[1]'::vector;  -- loads the library, which defines the settings
    IF current_setting('hnsw.iterative_scan', true) IS NOT NULL THEN
        wanted := wanted || jsonb_build_object('hnsw.iterative_scan', 'relaxed_order', 'hnsw.max_scan_tuples', greatest(20000, 20 * n));
    END IF;
    SELECT jsonb_object_agg(w.key, current_setting(w.key)) INTO before FROM jsonb_each_text(wanted) w;
    PERFORM set_config(w.key, w.value, true) FROM jsonb_each_text(wanted) w;
    RETURN before;
END
$$;

-- The n nearest documents. Exact recall orders by an expression that no index serves.
CREATE OR REPLACE FUNCTION _recall(r rerankers, embedding vector, filter text, n int, exact boolean) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    d record := _distance_sql(r.distance);
    type text := 'halfvec';
    pool candidate[];
    before jsonb;
BEGIN
    IF r.embedding_column IS NOT NULL THEN
        type := (_embedding_column(r.source, r.embedding_column)).type;
    END IF;
    before := _widen_hnsw(n);
    EXECUTE format(
        'WITH nearest AS MATERIALIZED (SELECT d.%1$I AS key, %2$s %3$s $1::%4$s AS distance FROM %5$s WHERE %2$s IS NOT NULL AND %6$s '
        'ORDER BY (%2$s %3$s $1::%4$s) %7$s LIMIT $2) '
        'SELECT array_agg((key, score, rank, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
        'SELECT key, (%8$s)::real AS score, row_number() OVER (ORDER BY distance, key) AS rank FROM nearest) ranked',
        r.key_column, coalesce('d.' || quote_ident(r.embedding_column), 's.embedding'), d.operator, type,
        CASE WHEN r.embedding_column IS NULL
             THEN format('%s s JOIN %s d ON d.%I = s.key', _side(r.name, r.generation), r.source, r.key_column)
             ELSE format('%s d', r.source) END,
        filter, CASE WHEN exact OR (n > 1000 AND NOT before ? 'hnsw.iterative_scan') THEN '+ 0' ELSE '' END, d.score)
    INTO pool USING embedding, n;
    PERFORM set_config(b.key, b.value, true) FROM jsonb_each_text(before) b;
    RETURN pool;
END
$$;

-- The caller's own candidates in the caller's order: those that exist, are visible and pass the filter.
CREATE OR REPLACE FUNCTION _given(r rerankers, keys text[], filter text) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    pool candidate[];
BEGIN
    EXECUTE format(
        'SELECT array_agg((key, NULL, rank, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
        'SELECT d.%1$I AS key, row_number() OVER (ORDER BY k.place) AS rank FROM ('
        'SELECT key, min(place) AS place FROM unnest($1::%2$s[]) WITH ORDINALITY u (key, place) GROUP BY key) k '
        'JOIN %3$s d ON d.%1$I = k.key WHERE %4$s) ranked', r.key_column, r.key_type, r.source, filter)
    INTO pool USING keys;
    RETURN pool;
END
$$;

-- Recall without a query vector: the documents that share most words with the query. It keeps search answering
-- while no worker does.
CREATE OR REPLACE FUNCTION _recall_fulltext(r rerankers, query text, filter text, n int) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    words tsquery := (SELECT string_agg(quote_literal(w), ' | ')::tsquery FROM unnest(tsvector_to_array(to_tsvector(r.text_search_config, left(query, 10000)))) w);
    pool candidate[];
BEGIN
    EXECUTE format(
        'SELECT array_agg((key, score, rank, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
        'SELECT key, score, row_number() OVER (ORDER BY score DESC, key) AS rank FROM ('
        'SELECT s.key, ts_rank_cd(s.lexemes, $1, 1) AS score FROM %s s JOIN %s d ON d.%I = s.key WHERE s.lexemes @@ $1 AND %s '
        'ORDER BY score DESC LIMIT $2) best) ranked', _side(r.name, r.generation), r.source, r.key_column, filter)
    INTO pool USING words, n;
    RETURN pool;
END
$$;

-- The documents' texts, as the caller may read them.
CREATE OR REPLACE FUNCTION _texts(r rerankers, keys text[], OUT known text[], OUT texts text[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format(
        'SELECT array_agg(key::text ORDER BY key), array_agg(coalesce(content, '''') ORDER BY key) '
        'FROM (SELECT %1$I AS key, (%2$s) AS content FROM %3$s WHERE %1$I = ANY ($1::%4$s[])) d',
        r.key_column, (SELECT g.text_expression FROM generations g WHERE (g.reranker, g.number) = (r.name, r.generation)), r.source, r.key_type)
    INTO known, texts USING keys;
END
$$;

-- The cross-encoder reads the texts of the first n candidates.
CREATE OR REPLACE FUNCTION _cross_encode(r rerankers, pool candidate[], query text, n int, deadline timestamptz) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    read record := _texts(r, ARRAY(SELECT c.key FROM unnest(pool) c LIMIT n));
BEGIN
    RETURN _rank_by(pool, 'cross_encoder', read.known, _cross_encoded(r.cross_encoder_model, query, read.texts, deadline), r.blend);
END
$$;

CREATE OR REPLACE FUNCTION _cross_encoded(model text, query text, documents text[], deadline timestamptz) RETURNS real[]
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _scores(_call(json_build_object('call', 'cross_encode', 'model', model, 'query', query, 'documents', documents)::text, deadline), cardinality(documents))
$$;

-- For texts that are in no reranker's table.
CREATE OR REPLACE FUNCTION cross_encode(model text, query text, documents text[], timeout interval DEFAULT '1 minute') RETURNS real[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM _model(model, 'cross_encoder');
    IF query IS NULL OR documents IS NULL OR array_position(documents, NULL) IS NOT NULL THEN
        PERFORM _fail('null_value_not_allowed', 'cross_encode: the query, documents or one of them is NULL, texts wanted');
    END IF;
    RETURN CASE WHEN documents = '{}' THEN '{}'::real[] ELSE _cross_encoded(model, query, documents, clock_timestamp() + timeout) END;
END
$$;
COMMENT ON FUNCTION cross_encode IS 'Scores of texts for a query by a registered cross-encoder, in the texts'' order';

-- The weighted sum of the scores so far, each less its mean over the candidates that this stage has scored, in units of its
-- standard deviation there (Montague and Aslam, CIKM 2001: zero-mean, unit-variance). A stage that did not run, or that has
-- no score of a candidate, adds nothing.
CREATE OR REPLACE FUNCTION _blended(pool candidate[], stage text, keys text[], scores real[], blend jsonb) RETURNS real[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(b.total::real ORDER BY b.place) FROM (
        SELECT s.place,
            coalesce((blend ->> 'recall')::float8 * (s.recall - avg(s.recall) OVER w) / nullif(stddev_pop(s.recall) OVER w, 0), 0)
            + coalesce((blend ->> 'maxsim')::float8 * (s.maxsim - avg(s.maxsim) OVER w) / nullif(stddev_pop(s.maxsim) OVER w, 0), 0)
            + coalesce((blend ->> 'cross_encoder')::float8 * (s.cross_encoder - avg(s.cross_encoder) OVER w) / nullif(stddev_pop(s.cross_encoder) OVER w, 0), 0) AS total
        FROM (
            SELECT u.place, c.recall_score::float8 AS recall, CASE stage WHEN 'maxsim' THEN u.score ELSE c.maxsim_score END::float8 AS maxsim,
                CASE stage WHEN 'cross_encoder' THEN u.score END::float8 AS cross_encoder
            FROM unnest(keys, scores) WITH ORDINALITY u (key, score, place) JOIN unnest(pool) c USING (key)) s
        WINDOW w AS ()) b
$$;

-- Writes a stage's scores into the pool, which it orders: by the last stage's rank, then, for the candidates that it left
-- out, by the ranks before. scores and keys are parallel. The rank is that of the score, or, where weights are given, of the
-- blended one.
CREATE OR REPLACE FUNCTION _rank_by(pool candidate[], stage text, keys text[], scores real[], blend jsonb) RETURNS candidate[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg((c.key, c.recall_score, c.recall_rank,
            CASE stage WHEN 'maxsim_bit' THEN s.score ELSE c.maxsim_bit_score END, CASE stage WHEN 'maxsim_bit' THEN s.rank ELSE c.maxsim_bit_rank END,
            CASE stage WHEN 'maxsim' THEN s.score ELSE c.maxsim_score END, CASE stage WHEN 'maxsim' THEN s.rank ELSE c.maxsim_rank END,
            CASE stage WHEN 'cross_encoder' THEN s.score END, CASE stage WHEN 'cross_encoder' THEN s.rank END,
            coalesce(s.blended, c.blended_score))::candidate
        ORDER BY s.rank, c.maxsim_rank, c.maxsim_bit_rank, c.recall_rank)
    FROM unnest(pool) c LEFT JOIN (
        SELECT u.key, u.score, u.blended, (row_number() OVER (ORDER BY coalesce(u.blended, u.score) DESC, u.key))::int AS rank
        FROM unnest(keys, scores, CASE WHEN blend IS NOT NULL THEN _blended(pool, stage, keys, scores, blend) END) u (key, score, blended)) s USING (key)
$$;

-- Scores the first n candidates over one tier of their token vectors.
CREATE OR REPLACE FUNCTION _maxsim(r rerankers, pool candidate[], stage text, n int, query_tokens bytea, deadline timestamptz) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    parts text := _parts(r.name, r.generation, CASE stage WHEN 'maxsim_bit' THEN 'bits' ELSE 'tokens' END);
    chosen text[] := ARRAY(SELECT c.key FROM unnest(pool) c LIMIT n);
    scored record;
BEGIN
    IF _has_native() THEN
        scored := _score_by_kernel(parts, r.key_type, chosen, query_tokens);
    ELSE
        scored := _score_by_worker(parts, r.key_type, chosen, query_tokens, deadline);
    END IF;
    RETURN _rank_by(pool, stage, scored.keys, scored.scores, CASE stage WHEN 'maxsim' THEN r.blend END);
END
$$;

-- Milliseconds since then.
CREATE OR REPLACE FUNCTION _ms(since timestamptz) RETURNS numeric
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT round(1000 * extract(epoch FROM clock_timestamp() - since), 3) $$;

-- The first candidates of a pool as a search returns them.
CREATE OR REPLACE FUNCTION _rows(pool candidate[], first_stage text, reason text, top_k int) RETURNS TABLE (
    key text, score real, rank int, stage text, degraded boolean, reason text,
    recall_score real, recall_rank int, maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int,
    cross_encoder_score real, cross_encoder_rank int
)
LANGUAGE sql IMMUTABLE ROWS 10
SET search_path FROM CURRENT
AS $$
    SELECT c.key, coalesce(c.blended_score, c.cross_encoder_score, c.maxsim_score, c.maxsim_bit_score, c.recall_score), c.place::int,
        CASE WHEN c.cross_encoder_rank IS NOT NULL THEN 'cross_encoder' WHEN c.maxsim_rank IS NOT NULL THEN 'maxsim'
             WHEN c.maxsim_bit_rank IS NOT NULL THEN 'maxsim_bit' ELSE $2 END,
        $3 IS NOT NULL, $3,
        c.recall_score, c.recall_rank, c.maxsim_bit_score, c.maxsim_bit_rank, c.maxsim_score, c.maxsim_rank,
        c.cross_encoder_score, c.cross_encoder_rank
    FROM unnest($1) WITH ORDINALITY c (
        key, recall_score, recall_rank, maxsim_bit_score, maxsim_bit_rank, maxsim_score, maxsim_rank, cross_encoder_score, cross_encoder_rank, blended_score, place)
    ORDER BY c.place LIMIT $4
$$;

-- All that a call does: the pool in its last order, what made it, why it is degraded, and the milliseconds of each stage.
CREATE OR REPLACE FUNCTION _run(
    r rerankers, query text, top_k int, filter jsonb, stages text[], keys text[], query_embedding vector, query_tokens bytea, recall text, strict boolean,
    OUT pool candidate[], OUT first_stage text, OUT reason text, OUT times jsonb)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    started timestamptz := clock_timestamp();
    deadline timestamptz;
    mark timestamptz;
    wants_tokens boolean;
    predicate text;
    encoding numeric := 0;
BEGIN
    first_stage := 'recall';
    times := '{}';
    PERFORM _check_call(r, query, top_k, keys, query_embedding, recall);
    PERFORM _check_query_tokens(r, query_tokens);
    PERFORM _check_settings(r);
    stages := _stages(r, stages, query IS NOT NULL, query_tokens IS NOT NULL);
    wants_tokens := stages && '{maxsim_bit,maxsim}';
    predicate := _filter_sql(r.source, filter);
    deadline := started + r.timeout;
    BEGIN
        IF keys IS NULL AND query_embedding IS NULL THEN
            mark := clock_timestamp();
            SELECT * INTO query_embedding, query_tokens
            FROM _encode_query(r, query, query_embedding, query_tokens, true, wants_tokens, deadline);
            encoding := _ms(mark);
        END IF;
        mark := clock_timestamp();
        IF keys IS NOT NULL THEN
            pool := _given(r, keys, predicate);
        ELSE
            pool := _recall(r, query_embedding, predicate, r.candidates, recall = 'exact');
        END IF;
        times := jsonb_build_object('recall', _ms(mark));
        IF wants_tokens AND pool <> '{}' THEN
            mark := clock_timestamp();
            query_tokens := (_encode_query(r, query, NULL, query_tokens, false, true, deadline)).tokens;
            encoding := encoding + _ms(mark);
        END IF;
        IF 'maxsim_bit' = ANY (stages) AND pool <> '{}' THEN
            mark := clock_timestamp();
            pool := _maxsim(r, pool, 'maxsim_bit', NULL, query_tokens, deadline);
            times := times || jsonb_build_object('maxsim_bit', _ms(mark));
        END IF;
        IF 'maxsim' = ANY (stages) AND pool <> '{}' THEN
            mark := clock_timestamp();
            pool := _maxsim(r, pool, 'maxsim', CASE WHEN 'maxsim_bit' = ANY (stages) THEN r.maxsim_bit_top END, query_tokens, deadline);
            times := times || jsonb_build_object('maxsim', _ms(mark));
        END IF;
        IF 'cross_encoder' = ANY (stages) AND pool <> '{}' THEN
            mark := clock_timestamp();
            pool := _cross_encode(r, pool, query, r.maxsim_top, deadline);
            times := times || jsonb_build_object('cross_encoder', _ms(mark));
        END IF;
    EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
        IF strict THEN
            RAISE;
        END IF;
        reason := SQLERRM;
    END;
    IF pool IS NULL AND reason IS NOT NULL THEN
        first_stage := 'fulltext';
        pool := _recall_fulltext(r, query, predicate, r.candidates);
        IF pool IS NULL THEN
            RAISE WARNING 'pgrerank: no document found: %', reason;
        END IF;
    END IF;
    times := times || jsonb_build_object('encode_query', encoding, 'total', _ms(started));
END
$$;

-- The reranker as a call wants it.
CREATE OR REPLACE FUNCTION _for_call(reranker text, top_k int, candidates int, maxsim_bit_top int, maxsim_top int, timeout interval) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _settled(reranker);
BEGIN
    r.candidates := greatest(coalesce(candidates, r.candidates), top_k);
    r.maxsim_bit_top := coalesce(maxsim_bit_top, r.maxsim_bit_top);
    r.maxsim_top := coalesce(maxsim_top, r.maxsim_top);
    r.timeout := coalesce(timeout, r.timeout);
    RETURN r;
END
$$;

CREATE OR REPLACE FUNCTION _search(
    reranker text, query text, top_k int, filter jsonb, candidates int, maxsim_bit_top int, maxsim_top int, stages text[], keys text[],
    query_embedding vector, query_tokens bytea, recall text, timeout interval, strict boolean
) RETURNS TABLE (
    key text, score real, rank int, stage text, degraded boolean, reason text,
    recall_score real, recall_rank int, maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int,
    cross_encoder_score real, cross_encoder_rank int
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _for_call(reranker, top_k, candidates, maxsim_bit_top, maxsim_top, timeout);
    pool candidate[];
    first_stage text;
    times jsonb;
BEGIN
    SELECT * INTO pool, first_stage, reason, times
    FROM _run(r, query, top_k, filter, stages, keys, query_embedding, query_tokens, recall, strict);
    IF r.log_sample > 0 AND keys IS NULL AND query_embedding IS NULL AND query_tokens IS NULL THEN
        PERFORM _log_search(r, query, jsonb_build_object('top_k', top_k, 'filter', filter, 'candidates', candidates, 'maxsim_bit_top', maxsim_bit_top,
            'maxsim_top', maxsim_top, 'stages', stages, 'recall', nullif(recall, 'hnsw'), 'timeout', timeout), top_k, pool, first_stage, reason, times);
    END IF;
    RETURN QUERY SELECT * FROM _rows(pool, first_stage, reason, top_k);
END
$$;

-- As the caller, who needs the right to write it, and only where there is something to replay: a query in words.
CREATE OR REPLACE FUNCTION _log_search(r rerankers, query text, arguments jsonb, top_k int, pool candidate[], first_stage text, reason text, times jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
BEGIN
    IF random() >= r.log_sample OR coalesce(query, '') !~ '\S' OR NOT has_table_privilege('pgrerank.searches', 'INSERT')
        OR current_setting('transaction_read_only')::boolean THEN
        RETURN;
    END IF;
    INSERT INTO searches (reranker, generation, query, arguments, keys, recall_ranks, maxsim_ranks, cross_encoder_ranks, stage, degraded, reason, times)
    SELECT r.name, r.generation, left(query, 10000), (SELECT jsonb_object_agg(a.key, a.value) FROM jsonb_each(arguments) a WHERE a.value <> 'null'),
        coalesce(array_agg(c.key ORDER BY c.rank), '{}'), coalesce(array_agg(c.recall_rank ORDER BY c.rank), '{}'),
        coalesce(array_agg(c.maxsim_rank ORDER BY c.rank), '{}'), coalesce(array_agg(c.cross_encoder_rank ORDER BY c.rank), '{}'),
        coalesce((array_agg(c.stage ORDER BY c.rank))[1], first_stage), reason IS NOT NULL, reason, times
    FROM _rows(pool, first_stage, reason, top_k) c;
END
$$;

-- Deletes what is older than its reranker's log_retention, or than what is given; a worker does so when it has nothing else to do.
CREATE OR REPLACE FUNCTION forget_searches(reranker text DEFAULT NULL, older_than interval DEFAULT NULL) RETURNS bigint
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    WITH gone AS (
        DELETE FROM searches s USING rerankers r
        WHERE r.name = s.reranker AND ($1 IS NULL OR r.name = $1) AND s.searched_at <= now() - coalesce($2, r.log_retention)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION forget_searches IS 'Deletes remembered searches that are older than log_retention or the interval given; returns how many';

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

CREATE OR REPLACE FUNCTION explain_search(
    reranker text,
    query text,
    top_k int DEFAULT 10,
    filter jsonb DEFAULT NULL,
    candidates int DEFAULT NULL,
    maxsim_bit_top int DEFAULT NULL,
    maxsim_top int DEFAULT NULL,
    stages text[] DEFAULT NULL,
    keys text[] DEFAULT NULL,
    recall text DEFAULT 'hnsw',
    generation int DEFAULT NULL,
    blend jsonb DEFAULT NULL,
    timeout interval DEFAULT NULL,
    strict boolean DEFAULT false,
    alignments boolean DEFAULT true
) RETURNS TABLE (
    key text, score real, rank int, stage text, degraded boolean, reason text,
    recall_score real, recall_rank int, maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int,
    cross_encoder_score real, cross_encoder_rank int, times jsonb, alignment jsonb
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _of_generation(_for_call(reranker, top_k, candidates, maxsim_bit_top, maxsim_top, timeout), generation);
    pool candidate[];
    first_stage text;
    aligned jsonb := '{}';
BEGIN
    r.blend := nullif(coalesce(blend, r.blend), '{}');
    SELECT * INTO pool, first_stage, reason, times FROM _run(r, query, top_k, filter, stages, keys, NULL, NULL, recall, strict);
    IF alignments AND reason IS NULL AND query IS NOT NULL THEN
        aligned := _alignments(r, query, ARRAY(SELECT c.key FROM _rows(pool, first_stage, reason, top_k) c), strict);
    END IF;
    RETURN QUERY SELECT c.*, times, aligned -> c.key FROM _rows(pool, first_stage, reason, top_k) c;
END
$$;
COMMENT ON FUNCTION explain_search IS 'A search with the rank and score of each document after every stage, the milliseconds of each stage, and how tokens were matched';

-- Another generation of a reranker than the one in use, while it is kept.
CREATE OR REPLACE FUNCTION _of_generation(r rerankers, generation int) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF generation IS NOT NULL THEN
        IF NOT EXISTS (SELECT FROM generations g WHERE (g.reranker, g.number) = (r.name, _of_generation.generation)) THEN
            PERFORM _fail('undefined_object', format('reranker "%s" has no generation %s', r.name, generation),
                format('There are: %s.', (SELECT string_agg(g.number::text, ', ' ORDER BY g.number) FROM generations g WHERE g.reranker = r.name)));
        END IF;
        r.generation := generation;
        EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', _side(r.name, generation));
    END IF;
    RETURN r;
END
$$;

-- By key, what the worker says of the first documents' texts, as the caller may read them. Its vectors are the model's own, not
-- the stored ones, which may be pooled or projected.
CREATE OR REPLACE FUNCTION _alignments(r rerankers, query text, keys text[], strict boolean) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    g generations := (SELECT x FROM generations x WHERE (x.reranker, x.number) = (r.name, r.generation));
    read record;
    answer jsonb;
BEGIN
    IF g.late_interaction_model IS NULL OR keys = '{}' THEN
        RETURN '{}';
    END IF;
    read := _texts(r, keys);
    answer := _call(json_build_object('call', 'align', 'model', g.late_interaction_model, 'query', query, 'documents', read.texts)::text,
        clock_timestamp() + greatest(r.timeout, '30 s'));
    IF jsonb_typeof(answer -> 'documents') IS DISTINCT FROM 'array' OR jsonb_array_length(answer -> 'documents') <> cardinality(read.known) THEN
        PERFORM _fail('PGR03', 'the worker answered something else than an alignment for each document');
    END IF;
    RETURN (
        SELECT jsonb_object_agg(f.key, d.document || jsonb_build_object('query', answer -> 'query'))
        FROM unnest(read.known) WITH ORDINALITY f (key, i) JOIN jsonb_array_elements(answer -> 'documents') WITH ORDINALITY d (document, i) USING (i));
EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
    IF strict THEN
        RAISE;
    END IF;
    RAISE WARNING 'pgrerank: tokens are not aligned: %', SQLERRM;
    RETURN '{}';
END
$$;

-- A search of all candidates as one value: arrays in the last order, and the milliseconds of each stage.
CREATE OR REPLACE FUNCTION _trace(
    reranker text, query text, candidates int, maxsim_bit_top int, maxsim_top int, stages text[], recall text, generation int, blend jsonb, timeout interval
) RETURNS jsonb
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT jsonb_build_object('keys', coalesce(jsonb_agg(s.key ORDER BY s.rank), '[]'),
        'recall_score', coalesce(jsonb_agg(s.recall_score ORDER BY s.rank), '[]'), 'recall_rank', coalesce(jsonb_agg(s.recall_rank ORDER BY s.rank), '[]'),
        'maxsim_bit_score', coalesce(jsonb_agg(s.maxsim_bit_score ORDER BY s.rank), '[]'), 'maxsim_bit_rank', coalesce(jsonb_agg(s.maxsim_bit_rank ORDER BY s.rank), '[]'),
        'maxsim_score', coalesce(jsonb_agg(s.maxsim_score ORDER BY s.rank), '[]'), 'maxsim_rank', coalesce(jsonb_agg(s.maxsim_rank ORDER BY s.rank), '[]'),
        'cross_encoder_score', coalesce(jsonb_agg(s.cross_encoder_score ORDER BY s.rank), '[]'),
        'cross_encoder_rank', coalesce(jsonb_agg(s.cross_encoder_rank ORDER BY s.rank), '[]'),
        'times', coalesce((jsonb_agg(s.times))[0], '{}'), 'reason', min(s.reason))
    FROM explain_search($1, $2, coalesce($3, (_reranker($1)).candidates), NULL, $3, $4, $5, $6, NULL, $7, $8, $9, $10, false, false) s
$$;

CREATE OR REPLACE FUNCTION evaluate(
    reranker text,
    qrels_set text,
    candidates int DEFAULT NULL,
    maxsim_top int DEFAULT NULL,
    generation int DEFAULT NULL,
    blend jsonb DEFAULT NULL,
    measures text[] DEFAULT '{nDCG@10,RR@10,AP,R@100,Judged@10}',
    timeout interval DEFAULT '1 minute'
) RETURNS TABLE (
    stage text, queries int, measured jsonb, stage_ms_p50 real, stage_ms_p95 real, total_ms_p50 real, total_ms_p95 real,
    against text, gain real, p real, better int, worse int
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    judged jsonb := _judged(qrels_set);
    traced jsonb;
    answer jsonb;
BEGIN
    SELECT jsonb_object_agg(q.id, jsonb_build_object(
        'exact', _trace(reranker, q.query, candidates, NULL, NULL, '{recall}', 'exact', generation, blend, timeout),
        'trace', _trace(reranker, q.query, candidates, NULL, maxsim_top, NULL, 'hnsw', generation, blend, timeout)))
    INTO traced FROM queries q WHERE q.qrels_set = evaluate.qrels_set AND judged ? q.id;
    answer := _call(json_build_object('call', 'evaluate', 'measures', measures, 'qrels', judged, 'traces', traced)::text, clock_timestamp() + interval '10 minutes');
    IF jsonb_typeof(answer -> 'orders') IS DISTINCT FROM 'array' THEN
        PERFORM _fail('PGR03', 'the worker answered something else than measures');
    END IF;
    RETURN QUERY
        SELECT o.value ->> 'stage', (SELECT count(*)::int FROM jsonb_object_keys(judged)), o.value -> 'measures',
            (o.value #>> '{stage_ms,p50}')::real, (o.value #>> '{stage_ms,p95}')::real,
            (o.value #>> '{total_ms,p50}')::real, (o.value #>> '{total_ms,p95}')::real,
            o.value ->> 'against', (o.value ->> 'gain')::real, (o.value ->> 'p')::real, (o.value ->> 'better')::int, (o.value ->> 'worse')::int
        FROM jsonb_array_elements(answer -> 'orders') o;
END
$$;
COMMENT ON FUNCTION evaluate IS 'Measures the order after each stage on a set of judgements, with the milliseconds of each, and whether it gains by more than chance';

-- Relevance by query and document.
CREATE OR REPLACE FUNCTION _judged(qrels_set text) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    judged jsonb := (SELECT jsonb_object_agg(q.query_id, q.documents) FROM (
        SELECT j.query_id, jsonb_object_agg(j.key, j.relevance) AS documents FROM qrels j WHERE j.qrels_set = _judged.qrels_set GROUP BY j.query_id) q);
BEGIN
    IF judged IS NULL THEN
        PERFORM _fail('undefined_object', format('there are no judgements in set "%s"', qrels_set),
            format('Sets: %s. Load one by `pgrerank qrels load`.', (SELECT coalesce(string_agg(DISTINCT j.qrels_set, ', '), 'none yet') FROM qrels j)));
    END IF;
    RETURN judged;
END
$$;
