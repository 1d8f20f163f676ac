-- create_reranker, alter_reranker, drop_reranker. One call is one statement: an error leaves nothing behind.

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

-- All documents of a fresh generation are pending.
CREATE OR REPLACE FUNCTION _warn_of_a_small_sample(g generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF g.token_dims IS NOT NULL AND (SELECT count(*) FROM pending p WHERE (p.reranker, p.generation) = (g.reranker, g.number)) < _sample_size() THEN
        RAISE WARNING 'reranker "%" has fewer than % documents to fit the projection to % dimensions on', g.reranker, _sample_size(), g.token_dims
            USING HINT = 'Once it has more, give token_dims again by pgrerank.alter_reranker.';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _check_models(r rerankers, g generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    own record;
    embedding models;
    late_interaction models;
BEGIN
    IF g.token_precision IS NULL OR g.token_precision NOT IN ('float16', 'int8', 'bit') THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": token_precision is %L, wanted float16, int8 or bit', r.name, g.token_precision));
    END IF;
    IF g.embedding_model IS NULL AND r.embedding_column IS NULL THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s" has neither embedding_model nor embedding_column: recall needs one', r.name));
    END IF;
    IF g.late_interaction_model IS NOT NULL THEN
        late_interaction := _model(g.late_interaction_model, 'late_interaction');
    ELSIF g.token_dims IS NOT NULL OR g.token_pool > 1 OR g.token_bits THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s" has no late_interaction_model: token_dims, token_pool and maxsim_bit_top want one', r.name));
    END IF;
    IF g.token_pool IS NULL OR g.token_pool NOT BETWEEN 1 AND 16 THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": token_pool is %s, wanted 1 to 16', r.name, coalesce(g.token_pool::text, 'NULL')));
    ELSIF g.token_dims NOT BETWEEN 8 AND late_interaction.dims THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": token_dims is %s, wanted 8 to %s, the dimensions of model "%s"',
            r.name, g.token_dims, late_interaction.dims, late_interaction.name));
    ELSIF g.token_bits AND g.token_precision = 'bit' THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s" has token_precision bit: maxsim_bit_top would score the same bits twice', r.name),
            'Leave maxsim_bit_top out, or choose token_precision int8.');
    END IF;
    IF r.cross_encoder_model IS NOT NULL THEN
        PERFORM _model(r.cross_encoder_model, 'cross_encoder');
    END IF;
    IF g.embedding_model IS NOT NULL THEN
        embedding := _model(g.embedding_model, 'embedding');
    END IF;
    IF r.embedding_column IS NOT NULL THEN
        own := _embedding_column(r.source, r.embedding_column);
        IF own.dims <> embedding.dims THEN
            PERFORM _fail('datatype_mismatch', format('column %s.%I has %s dimensions, model "%s" has %s', r.source, r.embedding_column, own.dims, embedding.name, embedding.dims),
                'Name the model that made the column''s vectors, or leave embedding_column out.');
        END IF;
    END IF;
END
$$;

-- The side table, and beside it a table for each tier of token vectors.
CREATE OR REPLACE FUNCTION _create_side(reranker text, generation int) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(reranker);
    g generations;
    side text := _side(reranker, generation);
    tier text;
    dims int;
BEGIN
    SELECT * INTO g FROM generations x WHERE x.reranker = r.name AND x.number = generation;
    IF r.embedding_column IS NULL AND g.embedding_model IS NOT NULL THEN
        dims := (_model(g.embedding_model, 'embedding')).dims;
    END IF;
    EXECUTE format(
        'CREATE TABLE %s (key %s PRIMARY KEY, embedding halfvec%s, lexemes tsvector, '
        'content_hash bytea NOT NULL, encoded_at timestamptz NOT NULL DEFAULT now())', side, r.key_type, coalesce('(' || dims || ')', ''));
    IF dims IS NOT NULL THEN
        EXECUTE format('CREATE INDEX ON %s USING hnsw (embedding halfvec_%s_ops)', side,
            CASE r.distance WHEN 'inner_product' THEN 'ip' ELSE r.distance END);
    END IF;
    EXECUTE format('CREATE INDEX ON %s USING gin (lexemes)', side);
    PERFORM _protect(side, r, g, format('Vectors of reranker %s, generation %s', r.name, generation));
    FOREACH tier IN ARRAY _tiers(reranker, generation) LOOP
        PERFORM _create_parts(r, g, tier);
    END LOOP;
END
$$;

-- A document's token vectors in parts that fit a page: read in place, they cost half of what TOAST's pieces of 2 kB do.
CREATE OR REPLACE FUNCTION _create_parts(r rerankers, g generations, tier text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    parts text := _parts(r.name, g.number, tier);
BEGIN
    EXECUTE format('CREATE TABLE %s (key %s, part int, tokens bytea NOT NULL, PRIMARY KEY (key, part)) WITH (toast_tuple_target = 8160)', parts, r.key_type);
    EXECUTE format('ALTER TABLE %s ALTER COLUMN tokens SET STORAGE EXTERNAL', parts);
    PERFORM _protect(parts, r, g, format('Token vectors of reranker %s, generation %s, in %s', r.name, g.number, CASE tier WHEN 'bits' THEN 'bit' ELSE g.token_precision END));
END
$$;

-- Visible exactly to those who may read the text in the source, for vectors can be inverted to text.
-- OFFSET 0 keeps the planner from hashing the whole source for it, and has it look up the keys that a search reads.
CREATE OR REPLACE FUNCTION _protect(side text, r rerankers, g generations, comment text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', side);
    EXECUTE format('CREATE POLICY visible_with_source ON %s FOR SELECT USING (EXISTS (SELECT (%s) FROM %s source WHERE source.%I = %s.key OFFSET 0))',
        side, g.text_expression, r.source, r.key_column, side);
    EXECUTE format('GRANT SELECT ON %s TO PUBLIC', side);
    EXECUTE format('COMMENT ON TABLE %s IS %L', side, comment);
    EXECUTE format('ALTER TABLE %s OWNER TO %s', side, _owner());
END
$$;

-- Drops the side tables that no generation has.
CREATE OR REPLACE FUNCTION _drop_stale_sides(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    stale regclass;
BEGIN
    FOR stale IN SELECT c.oid FROM pg_class c
        WHERE c.relnamespace = 'pgrerank'::regnamespace AND c.relkind = 'r' AND c.relname ~ ('^' || reranker || '_\d+(_tokens|_bits)?$')
          AND NOT EXISTS (SELECT FROM generations g WHERE g.reranker || '_' || g.number = regexp_replace(c.relname, '_(tokens|bits)$', ''))
    LOOP
        EXECUTE format('DROP TABLE IF EXISTS %s', stale);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION _trigger_name(reranker text, event text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank_%s_%s', reranker, event) $$;

CREATE OR REPLACE FUNCTION _create_triggers(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(reranker);
    event record;
BEGIN
    FOR event IN SELECT * FROM (VALUES
        ('insert', 'REFERENCING NEW TABLE AS new_rows'),
        ('update', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'),
        ('delete', 'REFERENCING OLD TABLE AS old_rows'),
        ('truncate', '')) e (name, tables)
    LOOP
        EXECUTE format('CREATE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION pgrerank._sync(%L)',
            _trigger_name(r.name, event.name), event.name, r.source, event.tables, r.name);
    END LOOP;
END
$$;
