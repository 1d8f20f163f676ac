-- Release 0.1.0, frozen.

-- What the server must be.

DO $$
DECLARE
    version text := (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'vector');
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'Postgres % is too old: pgrerank wants 15 or newer', current_setting('server_version')
            USING ERRCODE = 'feature_not_supported';
    ELSIF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'database % has encoding %: pgrerank wants UTF8', current_database(), current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0.';
    ELSIF string_to_array(substring(version FROM '^\d+\.\d+'), '.')::int[] < ARRAY[0, 7] THEN
        RAISE EXCEPTION 'extension vector has version %: pgrerank wants 0.7 or newer', version
            USING ERRCODE = 'feature_not_supported', HINT = 'Run: ALTER EXTENSION vector UPDATE;';
    END IF;
END
$$;

-- The schema itself: who may look at it, and which version it is.

COMMENT ON SCHEMA pgrerank IS 'Reranking inside Postgres: recall, MaxSim, cross-encoder in one call';
GRANT USAGE ON SCHEMA pgrerank TO PUBLIC;

CREATE OR REPLACE FUNCTION schema_version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT '0.1.0' $$;
COMMENT ON FUNCTION schema_version() IS 'Version of the installed schema';

-- Conditions that end a stage but not a search (unless it is strict):
--   PGR01 no worker can be reached    PGR02 the deadline passed    PGR03 the worker refused or answered nonsense
CREATE OR REPLACE FUNCTION _fail(code text, message text, hint text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF hint IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message;
    END IF;
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, HINT = hint;
END
$$;

-- Whom pgrerank's functions belong to; side tables and the mapping to the worker are theirs.
CREATE OR REPLACE FUNCTION _owner() RETURNS regrole
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT p.proowner::regrole FROM pg_proc p WHERE p.oid = 'pgrerank._owner()'::regprocedure $$;

-- The registry of models. A worker loads what is written here; stored vectors name their model by generation.

CREATE TABLE IF NOT EXISTS models (
    name text PRIMARY KEY CHECK (name ~ '^[^[:cntrl:]]{1,100}$'),
    kind text NOT NULL CHECK (kind IN ('embedding', 'late_interaction', 'cross_encoder')),
    loader text NOT NULL,
    source text NOT NULL CHECK (source <> ''),
    revision text,
    dims int CHECK (dims BETWEEN 1 AND 4000),
    max_tokens int CHECK (max_tokens > 0),
    options jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(options) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT loader_fits_kind CHECK (loader = ANY (CASE kind
        WHEN 'embedding' THEN ARRAY['sentence_transformer']
        WHEN 'late_interaction' THEN ARRAY['multi_vector_encoder', 'sentence_transformer']
        ELSE ARRAY['cross_encoder', 'onnx'] END)),
    CONSTRAINT vectors_have_dims CHECK ((kind = 'cross_encoder') = (dims IS NULL))
);
COMMENT ON TABLE models IS 'Models that rerankers may name';
COMMENT ON COLUMN models.loader IS 'Which sentence-transformers class (or onnx) loads it';
COMMENT ON COLUMN models.source IS 'Hub name, folder, or package://PACKAGE/FOLDER inside an installed Python package';
COMMENT ON COLUMN models.dims IS 'Dimensions of its vectors; none for a cross-encoder';
COMMENT ON COLUMN models.max_tokens IS 'Tokens of its window; longer texts are encoded in several';
GRANT SELECT ON models TO PUBLIC;

-- Registers a model, or changes one that no reranker uses yet.
CREATE OR REPLACE FUNCTION register_model(
    name text,
    kind text,
    source text,
    dims int DEFAULT NULL,
    loader text DEFAULT NULL,
    revision text DEFAULT NULL,
    max_tokens int DEFAULT NULL,
    options jsonb DEFAULT '{}'
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
        coalesce(register_model.options, '{}'), now());
    SELECT * INTO present FROM models m WHERE m.name = register_model.name;
    IF FOUND AND (present.kind, present.loader, present.source, present.revision, present.dims, present.options)
        IS NOT DISTINCT FROM (wanted.kind, wanted.loader, wanted.source, wanted.revision, wanted.dims, wanted.options) THEN
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

CREATE OR REPLACE FUNCTION drop_model(name text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM models m WHERE m.name = drop_model.name;
    IF NOT FOUND THEN
        PERFORM _fail('undefined_object', format('model "%s" is not registered', drop_model.name));
    END IF;
EXCEPTION WHEN foreign_key_violation THEN
    RAISE EXCEPTION 'model "%" is used by a reranker', drop_model.name
        USING ERRCODE = 'dependent_objects_still_exist',
              HINT = 'See pgrerank.generations and pgrerank.rerankers for which.';
END
$$;
COMMENT ON FUNCTION drop_model IS 'Forgets a model that no reranker uses';

-- The model of that name and kind, or an error that says what there is.
CREATE OR REPLACE FUNCTION _model(name text, kind text) RETURNS models
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    present models;
    known text;
BEGIN
    SELECT * INTO present FROM models m WHERE m.name = _model.name;
    IF present.kind = _model.kind THEN
        RETURN present;
    END IF;
    SELECT string_agg(quote_ident(m.name), ', ' ORDER BY m.name) INTO known FROM models m WHERE m.kind = _model.kind;
    IF present.name IS NULL THEN
        PERFORM _fail('undefined_object', format('model "%s" is not registered', _model.name),
            format('Registered models of kind %s: %s. Add one by pgrerank.register_model or `pgrerank models add`.', _model.kind, coalesce(known, 'none')));
    END IF;
    PERFORM _fail('wrong_object_type', format('model "%s" is of kind %s, not %s', _model.name, present.kind, _model.kind),
        format('Registered models of kind %s: %s.', _model.kind, coalesce(known, 'none')));
END
$$;

-- What is stored about rerankers.

CREATE TABLE IF NOT EXISTS rerankers (
    name text PRIMARY KEY,
    source regclass NOT NULL,
    key_column name NOT NULL,
    key_type regtype NOT NULL,
    embedding_column name,
    distance text NOT NULL DEFAULT 'cosine',
    cross_encoder_model text REFERENCES models,
    candidates int NOT NULL DEFAULT 100,
    maxsim_bit_top int,
    maxsim_top int NOT NULL DEFAULT 30,
    timeout interval NOT NULL DEFAULT '5 seconds',
    text_search_config regconfig NOT NULL DEFAULT 'simple',
    generation int NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rerankers IS 'A reranker: a source table, its stages and their sizes';
COMMENT ON COLUMN rerankers.embedding_column IS 'The user''s own embedding column, where recall does not use the side table''s';
COMMENT ON COLUMN rerankers.candidates IS 'How many documents recall returns';
COMMENT ON COLUMN rerankers.maxsim_bit_top IS 'How many of the best by one bit a dimension MaxSim scores in full; NULL for all candidates, without that stage';
COMMENT ON COLUMN rerankers.maxsim_top IS 'How many of the best so far the cross-encoder scores';
COMMENT ON COLUMN rerankers.generation IS 'The generation that searches read';

CREATE TABLE IF NOT EXISTS generations (
    reranker text NOT NULL REFERENCES rerankers ON DELETE CASCADE,
    number int NOT NULL,
    text_expression text NOT NULL,
    embedding_model text REFERENCES models,
    late_interaction_model text REFERENCES models,
    token_precision text NOT NULL DEFAULT 'int8',
    token_dims int,
    token_pool int NOT NULL DEFAULT 1,
    token_bits boolean NOT NULL DEFAULT false,
    projection text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (reranker, number)
);
COMMENT ON TABLE generations IS 'What a reranker''s stored vectors were made from: one side table each';
COMMENT ON COLUMN generations.token_dims IS 'Dimensions that token vectors are projected to; NULL for the model''s own';
COMMENT ON COLUMN generations.token_pool IS 'A document''s token vectors are pooled to one for so many';
COMMENT ON COLUMN generations.token_bits IS 'Whether they are stored a second time, in one bit a dimension';
COMMENT ON COLUMN generations.projection IS 'MD5 of the matrix that reduces token vectors, once a worker has fitted it';

-- Apart from generations, which everybody may read: fitted on few documents, a projection tells of them.
CREATE TABLE IF NOT EXISTS projections (
    reranker text NOT NULL,
    generation int NOT NULL,
    matrix bytea NOT NULL,
    documents int NOT NULL,
    PRIMARY KEY (reranker, generation),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
COMMENT ON TABLE projections IS 'What reduces a generation''s token vectors to token_dims dimensions';
COMMENT ON COLUMN projections.matrix IS 'Orthonormal rows, packed as float16';
COMMENT ON COLUMN projections.documents IS 'How many documents it was fitted on';

CREATE SEQUENCE IF NOT EXISTS ticket;

CREATE TABLE IF NOT EXISTS pending (
    reranker text NOT NULL,
    generation int NOT NULL,
    key text NOT NULL,
    ticket bigint NOT NULL DEFAULT nextval('ticket'),
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    attempts int NOT NULL DEFAULT 0,
    claimed_by int,
    claimed_until timestamptz,
    failed_at timestamptz,
    last_error text,
    PRIMARY KEY (reranker, generation, key),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS pending_ticket ON pending (ticket) WHERE failed_at IS NULL;
COMMENT ON TABLE pending IS 'Documents that wait to be encoded, and those that failed';
COMMENT ON COLUMN pending.ticket IS 'Changes whenever the document does, so that a worker settles only what it saw';
COMMENT ON COLUMN pending.claimed_by IS 'Process id of the claiming worker''s Postgres session';

GRANT SELECT ON rerankers, generations TO PUBLIC;

CREATE OR REPLACE FUNCTION _reranker(name text) RETURNS rerankers
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    present rerankers;
    known text;
BEGIN
    SELECT * INTO present FROM rerankers r WHERE r.name = _reranker.name;
    IF FOUND THEN
        RETURN present;
    END IF;
    SELECT string_agg(r.name, ', ' ORDER BY r.name) INTO known FROM rerankers r;
    PERFORM _fail('undefined_object', format('reranker "%s" does not exist', _reranker.name),
        format('There are: %s.', coalesce(known, 'none yet; see pgrerank.create_reranker')));
END
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
        ('timeout', r.timeout::text, r.timeout BETWEEN '1 ms' AND '10 min', '1 ms to 10 min')) rules (setting, value, holds, wanted)
    WHERE holds IS NOT TRUE;
    IF FOUND THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": %s is %s, wanted %s', r.name, broken.setting, coalesce(quote_literal(broken.value), 'NULL'), broken.wanted));
    END IF;
END
$$;

-- The tiers in which a generation keeps token vectors.
CREATE OR REPLACE FUNCTION _tiers(reranker text, generation int) RETURNS text[]
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT ARRAY['tokens'] || CASE WHEN g.token_bits THEN ARRAY['bits'] ELSE '{}' END FROM generations g WHERE (g.reranker, g.number) = ($1, $2) $$;

-- The table with the parts of one tier.
CREATE OR REPLACE FUNCTION _parts(reranker text, generation int, tier text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank.%I', reranker || '_' || generation || '_' || tier) $$;

-- The side table of a generation, quoted and with its schema.
CREATE OR REPLACE FUNCTION _side(reranker text, generation int) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank.%I', reranker || '_' || generation) $$;

-- What a source table offers: its key, the text of its documents, an embedding column.

CREATE OR REPLACE FUNCTION _source_key(source regclass, OUT key_column name, OUT key_type regtype)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    relkind "char" := (SELECT c.relkind FROM pg_class c WHERE c.oid = source);
    columns text[];
BEGIN
    IF relkind NOT IN ('r', 'p') THEN
        PERFORM _fail('wrong_object_type', format('%s is a %s, which has no primary key and fires no triggers', source,
            CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'relation of another kind' END),
            'Name the table below it; text_expression can compute what the view does.');
    END IF;
    SELECT array_agg(a.attname ORDER BY a.attnum), min(a.attname::text), min(a.atttypid)
    INTO columns, key_column, key_type
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = source AND i.indisprimary;
    IF columns IS NULL THEN
        PERFORM _fail('invalid_table_definition', format('table %s has no primary key', source),
            format('Add one: ALTER TABLE %s ADD PRIMARY KEY (...);', source));
    ELSIF cardinality(columns) > 1 THEN
        PERFORM _fail('feature_not_supported', format('table %s has a composite primary key (%s): pgrerank wants one of a single column', source, array_to_string(columns, ', ')),
            'Add a single-column key, for example a bigint identity, and make it the primary key.');
    ELSIF key_type NOT IN ('bigint'::regtype, 'integer'::regtype, 'uuid'::regtype, 'text'::regtype, 'character varying'::regtype) THEN
        PERFORM _fail('datatype_mismatch', format('primary key %s.%s is of type %s: pgrerank wants bigint, integer, uuid or text', source, key_column, key_type));
    END IF;
END
$$;

-- Type of a column, or an error that names it.
CREATE OR REPLACE FUNCTION _column_type(source regclass, "column" text, OUT type regtype, OUT typmod int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT a.atttypid, a.atttypmod INTO type, typmod
    FROM pg_attribute a WHERE a.attrelid = source AND a.attname = "column" AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        PERFORM _fail('undefined_column', format('table %s has no column "%s"', source, "column"), (
            SELECT format('It has: %s.', string_agg(a.attname, ', ' ORDER BY a.attnum))
            FROM pg_attribute a WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped));
    END IF;
END
$$;

-- The expression that yields a document's text, from columns or checked as Postgres checks a generated column:
-- immutable, of this table's columns alone, no subquery, no set. What comes back is deparsed, hence well-formed.
CREATE OR REPLACE FUNCTION _text_expression(source regclass, text_columns text[], text_expression text) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    name text;
BEGIN
    IF (text_columns IS NULL) = (text_expression IS NULL) OR cardinality(text_columns) = 0 THEN
        PERFORM _fail('invalid_parameter_value', format('the text of a document in %s: give either text_columns or text_expression', source),
            'For example text_columns => ''{title, body}''.');
    END IF;
    IF text_expression IS NOT NULL THEN
        RETURN _checked_expression(source, text_expression);
    END IF;
    FOREACH name IN ARRAY text_columns LOOP
        IF NOT EXISTS (SELECT FROM _column_type(source, name) c JOIN pg_type t ON t.oid = c.type WHERE t.typcategory = 'S') THEN
            PERFORM _fail('datatype_mismatch', format('column %s.%s is of type %s, text wanted', source, quote_ident(name), (_column_type(source, name)).type),
                'Use text_expression to turn it into text.');
        END IF;
    END LOOP;
    RETURN (SELECT CASE count(*) WHEN 1 THEN min(format('%I::text', c))
                   ELSE format(E'concat_ws(E''\\n'', %s)', string_agg(quote_ident(c), ', ' ORDER BY i)) END
            FROM unnest(text_columns) WITH ORDINALITY u (c, i));
END
$$;

CREATE OR REPLACE FUNCTION _checked_expression(source regclass, expression text) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    columns int := (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = source AND a.attnum > 0 AND NOT a.attisdropped);
    checked text;
BEGIN
    IF expression ~ ';|--|/\*' THEN
        PERFORM _fail('syntax_error', format('text_expression "%s" contains ";", "--" or "/*": an expression and nothing else is wanted', expression));
    END IF;
    EXECUTE format('CREATE TEMPORARY TABLE pgrerank_probe (LIKE %s) ON COMMIT DROP', source);
    EXECUTE format('ALTER TABLE pg_temp.pgrerank_probe ADD COLUMN pgrerank_text text GENERATED ALWAYS AS (%s) STORED', expression);
    SELECT pg_get_expr(d.adbin, d.adrelid) INTO checked
    FROM pg_attrdef d JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.adrelid, d.adnum)
    WHERE d.adrelid = 'pg_temp.pgrerank_probe'::regclass AND a.attname = 'pgrerank_text'
      AND columns + 1 = (SELECT count(*) FROM pg_attribute b WHERE b.attrelid = d.adrelid AND b.attnum > 0 AND NOT b.attisdropped);
    DROP TABLE pg_temp.pgrerank_probe;
    IF checked IS NULL THEN
        PERFORM _fail('syntax_error', format('text_expression "%s" is more than an expression', expression));
    END IF;
    RETURN checked;
EXCEPTION
    WHEN undefined_column OR undefined_function OR syntax_error OR datatype_mismatch OR invalid_object_definition OR feature_not_supported
        OR grouping_error OR windowing_error OR invalid_column_reference OR undefined_table THEN
        RAISE EXCEPTION 'text_expression of %: %', source, SQLERRM
            USING ERRCODE = SQLSTATE,
                  HINT = 'An immutable expression of type text over this table''s columns is wanted, without subqueries.';
END
$$;

-- Dimensions and type of the user's own embedding column; a query vector must have as many.
CREATE OR REPLACE FUNCTION _embedding_column(source regclass, "column" text, OUT type text, OUT dims int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    SELECT c.type::text, c.typmod INTO type, dims FROM _column_type(source, "column") c
    WHERE c.type IN ('vector'::regtype, 'halfvec'::regtype);
    IF NOT FOUND THEN
        PERFORM _fail('datatype_mismatch', format('column %s.%s is of type %s: vector(n) or halfvec(n) wanted', source, quote_ident("column"), (_column_type(source, "column")).type));
    ELSIF dims < 0 THEN
        PERFORM _fail('datatype_mismatch', format('column %s.%s is a %s without dimensions', source, quote_ident("column"), type),
            format('Say them: ALTER TABLE %s ALTER COLUMN %I TYPE %s(n);', source, "column", type));
    END IF;
END
$$;

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
        token_precision, token_dims, token_pool, maxsim_bit_top IS NOT NULL, NULL, now());
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
-- with the old one until then. So does token_dims given again, where its projection was fitted on few documents.
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
    IF text_columns IS NOT NULL OR alter_reranker.text_expression IS NOT NULL THEN
        wanted.text_expression := _text_expression(reranker.source, text_columns, alter_reranker.text_expression);
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
COMMENT ON FUNCTION alter_reranker IS 'Changes a reranker; NULL leaves a setting as it is';

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

-- Source table to queue: statement-level triggers with transition tables, so that a bulk statement costs one statement.

-- SECURITY DEFINER: who writes documents needs no right on the queue. It reads transition tables and our own tables only.
CREATE OR REPLACE FUNCTION _sync() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(TG_ARGV[0]);
    g generations;
    rows_of text := format('SELECT %I AS key, (%%s) AS content FROM %%s', r.key_column);
BEGIN
    FOR g IN SELECT * FROM generations x WHERE x.reranker = r.name ORDER BY x.number LOOP
        CASE TG_OP
        WHEN 'INSERT' THEN
            EXECUTE format(_enqueue_sql(r.name, g.number), format('SELECT %I::text AS key FROM new_rows', r.key_column));
        WHEN 'UPDATE' THEN
            EXECUTE format(_enqueue_sql(r.name, g.number), format(
                'SELECT n.key::text FROM (%s) n LEFT JOIN (%s) o USING (key) WHERE o.key IS NULL OR n.content IS DISTINCT FROM o.content',
                format(rows_of, g.text_expression, 'new_rows'), format(rows_of, g.text_expression, 'old_rows')));
            EXECUTE format(_forget_sql(r.name, g.number), format(
                'SELECT o.%1$I AS key FROM old_rows o WHERE NOT EXISTS (SELECT FROM new_rows n WHERE n.%1$I = o.%1$I)', r.key_column));
        WHEN 'DELETE' THEN
            EXECUTE format(_forget_sql(r.name, g.number), format('SELECT %I AS key FROM old_rows', r.key_column));
        WHEN 'TRUNCATE' THEN
            EXECUTE format('TRUNCATE %s', concat_ws(', ', _side(r.name, g.number), (
                SELECT string_agg(_parts(r.name, g.number, t), ', ') FROM unnest(_tiers(r.name, g.number)) t)));
            DELETE FROM pending p WHERE (p.reranker, p.generation) = (r.name, g.number);
        END CASE;
    END LOOP;
    RETURN NULL;
END
$$;

-- Statement with one %s: a query that yields keys as text.
CREATE OR REPLACE FUNCTION _enqueue_sql(reranker text, generation int) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format(
        'INSERT INTO pending (reranker, generation, key) SELECT %L, %s, k.key FROM (%%s) k ORDER BY k.key '
        'ON CONFLICT (reranker, generation, key) DO UPDATE SET ticket = DEFAULT, enqueued_at = DEFAULT, attempts = DEFAULT, '
        'claimed_by = NULL, claimed_until = NULL, failed_at = NULL, last_error = NULL', reranker, generation)
$$;

-- Statement with one %s: a query that yields keys in the source's own type.
CREATE OR REPLACE FUNCTION _forget_sql(reranker text, generation int) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format(
        'WITH gone AS MATERIALIZED (%%s), %s'
        'dropped AS (DELETE FROM %s s USING gone WHERE s.key = gone.key) '
        'DELETE FROM pending p USING gone WHERE p.reranker = %L AND p.generation = %s AND p.key = gone.key::text',
        (SELECT string_agg(format('%I AS (DELETE FROM %s p USING gone WHERE p.key = gone.key), ', t, _parts(reranker, generation, t)), '')
         FROM unnest(_tiers(reranker, generation)) t),
        _side(reranker, generation), reranker, generation)
$$;

-- Enqueues the documents whose stored vectors are missing or made from another text, forgets vectors whose document is
-- gone, and returns how many wait. With retry_failed, documents that failed get their tries again. To a role that
-- row-level security hides documents from, they would seem gone: row_security = off makes that an error.
CREATE OR REPLACE FUNCTION enqueue(name text, retry_failed boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    r rerankers := _reranker(name);
    g generations;
    enqueued bigint := 0;
    counted bigint;
BEGIN
    FOR g IN SELECT * FROM generations x WHERE x.reranker = r.name ORDER BY x.number LOOP
        EXECUTE format(_forget_sql(r.name, g.number), format(
            'SELECT s.key FROM %s s WHERE NOT EXISTS (SELECT FROM %s d WHERE d.%I = s.key)', _side(r.name, g.number), r.source, r.key_column));
        EXECUTE format(_enqueue_sql(r.name, g.number), format(
            'SELECT d.key::text FROM (SELECT %I AS key, _content_hash(%s) AS hash FROM %s) d LEFT JOIN %s s USING (key) '
            'WHERE s.content_hash IS DISTINCT FROM d.hash AND NOT EXISTS ('
            'SELECT FROM pending p WHERE p.reranker = %L AND p.generation = %s AND p.key = d.key::text AND (p.failed_at IS NULL OR NOT %L))',
            r.key_column, g.text_expression, r.source, _side(r.name, g.number), r.name, g.number, retry_failed));
        SELECT count(*) INTO counted FROM pending p
        WHERE (p.reranker, p.generation) = (r.name, g.number) AND p.failed_at IS NULL;
        enqueued := enqueued + counted;
    END LOOP;
    RETURN enqueued;
END
$$;
COMMENT ON FUNCTION enqueue IS 'Enqueues whatever is not encoded or out of date; returns how many documents wait';

-- Names the text a vector was made from; NULL counts as empty.
CREATE OR REPLACE FUNCTION _content_hash(content text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT sha256(convert_to(coalesce(content, ''), 'UTF8')) $$;

-- Queue to side table: what a worker calls. It claims, encodes outside of any transaction, and stores.

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

-- How many documents a projection is fitted on: some ten thousand token vectors.
CREATE OR REPLACE FUNCTION _sample_size() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 256 $$;

-- Texts of the source at random, to fit a projection on.
CREATE OR REPLACE FUNCTION sample_texts(reranker text, generation int) RETURNS SETOF text
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    r rerankers := _reranker(sample_texts.reranker);
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT d.content FROM (SELECT %1$I AS key FROM %2$s ORDER BY random() LIMIT $1) k '
        'JOIN (SELECT %1$I AS key, (%3$s) AS content FROM %2$s) d USING (key) WHERE d.content ~ ''\S''', r.key_column, r.source,
        (SELECT g.text_expression FROM generations g WHERE (g.reranker, g.number) = (r.name, sample_texts.generation)))
    USING _sample_size();
END
$$;
COMMENT ON FUNCTION sample_texts IS 'Texts of a reranker''s source at random';

-- Keeps the projection fitted first, and returns the generation's: all its token vectors go by that one.
-- NULL when the generation has gone.
CREATE OR REPLACE FUNCTION keep_projection(reranker text, generation int, matrix bytea, documents int) RETURNS bytea
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    kept projections;
BEGIN
    UPDATE generations g SET projection = md5(keep_projection.matrix)
    WHERE (g.reranker, g.number) = (keep_projection.reranker, keep_projection.generation) AND g.projection IS NULL;
    IF FOUND THEN
        INSERT INTO projections VALUES (keep_projection.reranker, keep_projection.generation, keep_projection.matrix, keep_projection.documents);
    END IF;
    SELECT * INTO kept FROM projections p WHERE (p.reranker, p.generation) = (keep_projection.reranker, keep_projection.generation);
    RETURN kept.matrix;
END
$$;
COMMENT ON FUNCTION keep_projection IS 'Gives a generation its projection, unless it has one; returns the one it has';

-- Stores the vectors of claimed documents (none for those with nothing to encode) and settles their claims. Arrays of one
-- length go together: an embedding is written '[…]'; token vectors are packed in parts, whose keys stand beside them in the
-- parts' order, bits likewise. A document that has gone meanwhile is left out; one that has changed has a new ticket and
-- stays pending.
CREATE OR REPLACE FUNCTION store(
    reranker text, generation int, keys text[], tickets bigint[], hashes bytea[], embeddings text[],
    token_keys text[] DEFAULT '{}', tokens bytea[] DEFAULT '{}', bit_keys text[] DEFAULT '{}', bits bytea[] DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    r rerankers;
    g generations;
    stored text[];
BEGIN
    SELECT * INTO g FROM generations x WHERE (x.reranker, x.number) = (store.reranker, store.generation);
    IF NOT FOUND THEN
        RETURN;  -- dropped while its documents were being encoded
    END IF;
    r := _reranker(store.reranker);
    EXECUTE format(
        'WITH alive AS MATERIALIZED ('
        '  SELECT %1$I AS key, (%2$s) AS content FROM %3$s source WHERE %1$I = ANY ($1::%4$s[]) FOR KEY SHARE OF source), '
        'stored AS (INSERT INTO %5$s AS s (key, embedding, lexemes, content_hash) '
        'SELECT alive.key, d.embedding::halfvec, to_tsvector(%6$L, left(alive.content, 200000)), d.hash '
        'FROM unnest($1, $2, $3) d (key, embedding, hash) JOIN alive ON alive.key = d.key::%4$s '
        'ON CONFLICT (key) DO UPDATE SET embedding = excluded.embedding, lexemes = excluded.lexemes, '
        'content_hash = excluded.content_hash, encoded_at = now() RETURNING s.key) SELECT array_agg(key::text) FROM stored',
        r.key_column, g.text_expression, r.source, r.key_type, _side(r.name, g.number), r.text_search_config)
    INTO stored USING keys, embeddings, hashes;
    PERFORM _store_parts(r, g, 'tokens', stored, token_keys, store.tokens);
    IF g.token_bits THEN
        PERFORM _store_parts(r, g, 'bits', stored, bit_keys, bits);
    END IF;
    PERFORM settle(store.reranker, store.generation, keys, tickets);
END
$$;
COMMENT ON FUNCTION store IS 'Stores the vectors of claimed documents and settles their claims';

-- Replaces the parts of the documents just stored.
CREATE OR REPLACE FUNCTION _store_parts(r rerankers, g generations, tier text, stored text[], keys text[], tokens bytea[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    parts text := _parts(r.name, g.number, tier);
BEGIN
    EXECUTE format('DELETE FROM %s WHERE key = ANY ($1::%s[])', parts, r.key_type) USING stored;
    EXECUTE format(
        'INSERT INTO %s (key, part, tokens) SELECT key::%s, row_number() OVER (PARTITION BY key ORDER BY i), tokens '
        'FROM unnest($2, $3) WITH ORDINALITY u (key, tokens, i) WHERE key = ANY ($1)', parts, r.key_type) USING stored, keys, tokens;
END
$$;

-- Takes claimed documents off the queue. When a new generation has nothing left to do it takes over.
CREATE OR REPLACE FUNCTION settle(reranker text, generation int, keys text[], tickets bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM pending p USING unnest(keys, tickets) d (key, ticket)
    WHERE p.reranker = settle.reranker AND p.generation = settle.generation AND p.key = d.key AND p.ticket = d.ticket;
    PERFORM _switch_when_complete(settle.reranker);
END
$$;

-- Searches hold their generation until their transaction ends. Waiting for one would make all new ones wait behind
-- us, so give up soon; whoever next finds the queue empty tries again.
CREATE OR REPLACE FUNCTION _switch_when_complete(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
#variable_conflict use_column
DECLARE
    newest int := (SELECT max(g.number) FROM generations g WHERE g.reranker = _switch_when_complete.reranker);
BEGIN
    PERFORM FROM rerankers r WHERE r.name = _switch_when_complete.reranker AND r.generation < newest FOR UPDATE;
    IF NOT FOUND OR EXISTS (SELECT FROM pending p
        WHERE p.reranker = _switch_when_complete.reranker AND p.generation = newest AND p.failed_at IS NULL) THEN
        RETURN;
    END IF;
    UPDATE rerankers r SET generation = newest WHERE r.name = _switch_when_complete.reranker;
    DELETE FROM generations g WHERE g.reranker = _switch_when_complete.reranker AND g.number < newest;
    PERFORM _drop_stale_sides(_switch_when_complete.reranker);
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

-- Gives a claimed document back, to be tried again after the others, or puts it aside after max_attempts tries.
CREATE OR REPLACE FUNCTION fail(reranker text, generation int, key text, ticket bigint, error text, max_attempts int DEFAULT 3) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    UPDATE pending p SET claimed_by = NULL, claimed_until = NULL, last_error = left(error, 1000),
        ticket = DEFAULT, failed_at = CASE WHEN p.attempts >= max_attempts THEN now() END
    WHERE p.reranker = fail.reranker AND p.generation = fail.generation AND p.key = fail.key AND p.ticket = fail.ticket
$$;

-- Gives back what this session has claimed and not settled, as if it had never been tried: the fault, if any, is not the
-- documents' (a model can't be loaded, say), but status shall show it.
CREATE OR REPLACE FUNCTION release(error text DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    UPDATE pending p SET claimed_by = NULL, claimed_until = NULL, attempts = p.attempts - 1, last_error = coalesce(left(error, 1000), p.last_error)
    WHERE p.claimed_by = pg_backend_pid() AND p.failed_at IS NULL
$$;

-- The way to the worker: a foreign server and a user mapping of dblink hold address and secret.

-- Says where the worker listens and with what password. Written for the schema's owner, whom _connect runs as.
CREATE OR REPLACE FUNCTION set_worker(host text, port int, password text, options jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET client_min_messages = warning
AS $$
DECLARE
    settings text;
BEGIN
    SELECT string_agg(format('%I %L', s.key, s.value), ', ') INTO settings
    FROM jsonb_each_text(jsonb_build_object('host', host, 'port', port, 'dbname', 'pgrerank',
        'connect_timeout', 2, 'tcp_user_timeout', 3000, 'application_name', 'pgrerank') || options) s;
    IF EXISTS (SELECT FROM pg_foreign_server s WHERE s.srvname = 'pgrerank_worker') THEN
        DROP SERVER pgrerank_worker CASCADE;
    END IF;
    EXECUTE format('CREATE SERVER pgrerank_worker FOREIGN DATA WRAPPER dblink_fdw OPTIONS (%s)', settings);
    EXECUTE format('CREATE USER MAPPING FOR %s SERVER pgrerank_worker OPTIONS (user ''pgrerank'', password %L)', _owner(), password);
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'role % can''t set the worker: %', current_user, SQLERRM
        USING ERRCODE = SQLSTATE,
              HINT = format('Have an administrator run: GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO %I;', current_user);
END
$$;
COMMENT ON FUNCTION set_worker IS 'Writes the worker''s address and password to a foreign server and user mapping';

-- A worker proves that it is alive by an advisory lock whose number is the time of day in milliseconds, renewed every few dozen
-- milliseconds from the loop that answers requests. Locks are seen at once by every session, leave nothing behind and
-- work on a standby.
CREATE OR REPLACE FUNCTION _now_tick() RETURNS int
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT ((extract(epoch FROM clock_timestamp()) * 1000)::bigint % 2147483648)::int $$;

CREATE OR REPLACE FUNCTION heartbeat(previous int DEFAULT NULL) RETURNS int
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    tick int := _now_tick();
BEGIN
    IF tick IS DISTINCT FROM previous THEN
        PERFORM pg_advisory_lock_shared(1885828462, tick);
        IF previous IS NOT NULL THEN
            PERFORM pg_advisory_unlock_shared(1885828462, previous);
        END IF;
    END IF;
    RETURN tick;
END
$$;
COMMENT ON FUNCTION heartbeat IS 'Renews the calling worker''s proof of life; takes what the last call returned';

-- Milliseconds since the youngest heartbeat; NULL when no worker has a session in this database.
CREATE OR REPLACE FUNCTION _heartbeat_age() RETURNS int
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT min((_now_tick()::bigint - l.objid::bigint + 2147483648 + 1000) % 2147483648 - 1000)::int
    FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = 1885828462 AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
$$;

-- A connection attempt to a stopped process hangs: its kernel accepts, and from Postgres 16 on dblink heeds no
-- connect_timeout. So wait for a heartbeat younger than this call before trying. No heartbeat at all is no proof of
-- death (a worker may serve without a session here), and a closed port refuses at once.
CREATE OR REPLACE FUNCTION _await_heartbeat(deadline timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    age int;
BEGIN
    LOOP
        age := _heartbeat_age();
        EXIT WHEN age IS NULL OR age < extract(epoch FROM clock_timestamp() - started) * 1000;
        IF clock_timestamp() >= least(deadline, started + interval '1 second') THEN
            PERFORM _fail('PGR01', format('the worker does not respond: its last heartbeat was %s ms ago', age));
        END IF;
        PERFORM pg_sleep(0.002);
    END LOOP;
END
$$;

-- SECURITY DEFINER, and these few lines only: the address and secret are the owner's, the connection is the caller's to use.
CREATE OR REPLACE FUNCTION _connect() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_foreign_server s WHERE s.srvname = 'pgrerank_worker') THEN
        PERFORM _fail('PGR01', 'no worker is known', 'Start one with --register, or call pgrerank.set_worker.');
    END IF;
    PERFORM dblink_connect('pgrerank', 'pgrerank_worker');
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
    PERFORM _fail('PGR01', 'no worker can be reached: connection failed', 'Start one: pgrerank worker');
END
$$;

CREATE OR REPLACE FUNCTION _disconnect() RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF 'pgrerank' = ANY (dblink_get_connections()) THEN
        PERFORM dblink_disconnect('pgrerank');
    END IF;
EXCEPTION WHEN OTHERS THEN
    NULL;  -- it was broken; dblink forgets it all the same
END
$$;

-- Sends one request and waits for its answer, a millisecond without sleeping, then in naps of one; interruptible throughout.
-- NULL means that the connection broke. The connection is dropped whenever the answer was not waited for: a late one
-- must not meet the next request, and its end tells the worker to stop.
CREATE OR REPLACE FUNCTION _exchange(request text, deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    answer jsonb;
BEGIN
    IF dblink_send_query('pgrerank', request) = 0 THEN
        RETURN NULL;
    END IF;
    WHILE dblink_is_busy('pgrerank') = 1 LOOP
        IF clock_timestamp() >= deadline THEN
            PERFORM _fail('PGR02', 'the deadline passed before the worker answered');
        END IF;
        IF clock_timestamp() > started + interval '1 ms' THEN
            PERFORM pg_sleep(0.001);
        END IF;
    END LOOP;
    SELECT r.answer INTO answer FROM dblink_get_result('pgrerank') r (answer jsonb);
    PERFORM FROM dblink_get_result('pgrerank') r (answer jsonb);  -- the protocol's end of results
    RETURN answer;
EXCEPTION
    WHEN connection_exception OR connection_failure OR connection_does_not_exist THEN
        RETURN NULL;
END
$$;

-- One call to the worker, a JSON object as text: connects where needed, once more when an old connection turns out to be broken.
CREATE OR REPLACE FUNCTION _call(request text, deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    id int := (random() * 2147483647)::int;
    answer jsonb;
    present boolean := 'pgrerank' = ANY (coalesce(dblink_get_connections(), '{}'));
BEGIN
    FOR attempt IN 1..2 LOOP
        IF NOT present THEN
            PERFORM _await_heartbeat(deadline);
            PERFORM _connect();
        END IF;
        -- A large request to a stopped process would block in send, where nothing interrupts; so ask for a sign of life first.
        IF octet_length(request) < 65536 OR _exchange('PING', deadline) IS NOT NULL THEN
            answer := _exchange(format('{"id": %s, "timeout_ms": %s, "request": %s}', id,
                greatest(1, (extract(epoch FROM deadline - clock_timestamp()) * 1000)::int), request), deadline);
            IF answer -> 'id' = to_jsonb(id) THEN
                RETURN answer;
            END IF;
        END IF;
        PERFORM _disconnect();
        EXIT WHEN NOT present;
        present := false;
    END LOOP;
    PERFORM _fail('PGR01', 'the connection to the worker broke');
EXCEPTION
    WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' THEN
        PERFORM _disconnect();
        RAISE;
    WHEN query_canceled THEN
        PERFORM _disconnect();
        RAISE;
    WHEN OTHERS THEN
        PERFORM _disconnect();
        PERFORM _fail('PGR03', format('the worker refused: %s', SQLERRM));
END
$$;

-- Scores from an answer, one for each document asked for; anything else is refused.
CREATE OR REPLACE FUNCTION _scores(answer jsonb, wanted int) RETURNS real[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    scores real[];
BEGIN
    IF jsonb_typeof(answer -> 'scores') = 'array' THEN
        scores := ARRAY(SELECT s.score::real FROM jsonb_array_elements_text(answer -> 'scores') WITH ORDINALITY s (score, i) ORDER BY s.i);
    END IF;
    IF cardinality(scores) IS DISTINCT FROM wanted OR EXISTS (
        SELECT FROM unnest(scores) s (score) WHERE s.score IS NULL OR s.score::text IN ('NaN', 'Infinity', '-Infinity')) THEN
        PERFORM _fail('PGR03', format('the worker answered %s scores for %s documents, or some that are no numbers', coalesce(cardinality(scores)::text, 'no'), wanted));
    END IF;
    RETURN scores;
EXCEPTION WHEN data_exception THEN
    PERFORM _fail('PGR03', format('the worker answered scores that are no numbers: %s', SQLERRM));
END
$$;

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

-- Search: a pool of candidates goes through the stages recall, maxsim_bit, maxsim, cross_encoder; each adds its score and
-- rank. Here are those that make a pool or settle it, 91 has MaxSim.
-- All SECURITY INVOKER: the caller's grants and row-level security decide what is read.

DO $$
BEGIN
    IF to_regtype('pgrerank.candidate') IS NULL THEN
        CREATE TYPE candidate AS (
            key text,
            recall_score real, recall_rank int,
            maxsim_bit_score real, maxsim_bit_rank int,
            maxsim_score real, maxsim_rank int,
            cross_encoder_score real, cross_encoder_rank int
        );
    END IF;
END
$$;
COMMENT ON TYPE candidate IS 'A document in the pool, with the score and rank of every stage that it has passed';

-- Similarity as a score: higher is better, whatever the distance.
CREATE OR REPLACE FUNCTION _distance_sql(distance text, OUT operator text, OUT score text)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE distance WHEN 'cosine' THEN '<=>' WHEN 'inner_product' THEN '<#>' ELSE '<->' END,
           CASE distance WHEN 'cosine' THEN '1 - distance' ELSE '-distance' END
$$;

-- Lets an HNSW scan yield n rows, also through a filter. Returns the settings to go back to.
CREATE OR REPLACE FUNCTION _widen_hnsw(n int) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    wanted jsonb := jsonb_build_object('hnsw.ef_search', least(greatest(n, 40), 1000));
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
        'SELECT array_agg((key, score, rank, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
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
        'SELECT array_agg((key, NULL, rank, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
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
        'SELECT array_agg((key, score, rank, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
        'SELECT key, score, row_number() OVER (ORDER BY score DESC, key) AS rank FROM ('
        'SELECT s.key, ts_rank_cd(s.lexemes, $1, 1) AS score FROM %s s JOIN %s d ON d.%I = s.key WHERE s.lexemes @@ $1 AND %s '
        'ORDER BY score DESC LIMIT $2) best) ranked', _side(r.name, r.generation), r.source, r.key_column, filter)
    INTO pool USING words, n;
    RETURN pool;
END
$$;

-- The cross-encoder reads the texts of the first n candidates, as the caller may read them.
CREATE OR REPLACE FUNCTION _cross_encode(r rerankers, pool candidate[], query text, n int, deadline timestamptz) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    keys text[];
    texts text[];
BEGIN
    EXECUTE format(
        'SELECT array_agg(key::text ORDER BY key), array_agg(coalesce(content, '''') ORDER BY key) '
        'FROM (SELECT %1$I AS key, (%2$s) AS content FROM %3$s WHERE %1$I = ANY ($1::%4$s[])) d',
        r.key_column, (SELECT g.text_expression FROM generations g WHERE (g.reranker, g.number) = (r.name, r.generation)), r.source, r.key_type)
    INTO keys, texts USING ARRAY(SELECT c.key FROM unnest(pool) c LIMIT n);
    RETURN _rank_by(pool, 'cross_encoder', keys, _scores(_call(json_build_object(
        'call', 'cross_encode', 'model', r.cross_encoder_model, 'query', query, 'documents', texts)::text, deadline), cardinality(keys)));
END
$$;

-- The query's own vectors from the worker, those that the stages need and the caller has not given.
CREATE OR REPLACE FUNCTION _encode_query(r rerankers, query text, INOUT embedding vector, INOUT tokens bytea, want_embedding boolean, want_tokens boolean, deadline timestamptz)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    g generations;
    answer jsonb;
BEGIN
    want_embedding := want_embedding AND embedding IS NULL;
    want_tokens := want_tokens AND tokens IS NULL;
    IF NOT (want_embedding OR want_tokens) THEN
        RETURN;
    END IF;
    SELECT * INTO g FROM generations x WHERE (x.reranker, x.number) = (r.name, r.generation);
    IF want_embedding AND g.embedding_model IS NULL THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s" has no embedding_model to encode the query with', r.name),
            'Give query_embedding or keys, or name a model by pgrerank.alter_reranker.');
    END IF;
    answer := _call(json_build_object('call', 'encode', 'text', query,
        'embedding', CASE WHEN want_embedding THEN g.embedding_model END,
        'late_interaction', CASE WHEN want_tokens THEN g.late_interaction_model END, 'projection', g.projection)::text, deadline);
    BEGIN
        IF want_embedding THEN
            embedding := (answer -> 'embedding')::text::vector;
        END IF;
        IF want_tokens THEN
            tokens := decode(answer ->> 'tokens', 'hex');
        END IF;
    EXCEPTION WHEN data_exception THEN
        PERFORM _fail('PGR03', format('the worker answered a query vector that is none: %s', SQLERRM));
    END;
    IF want_embedding AND vector_dims(embedding) IS DISTINCT FROM (SELECT m.dims FROM models m WHERE m.name = g.embedding_model)
        OR want_tokens AND tokens IS NULL THEN
        PERFORM _fail('PGR03', format('the worker answered a query vector of %s dimensions, not those of model "%s"', coalesce(vector_dims(embedding)::text, 'no'), g.embedding_model));
    END IF;
END
$$;

-- The MaxSim stages: by the native kernel where the server has it, else by the worker.

-- Writes a stage's scores into the pool, which it orders: by the last stage's rank, then, for the candidates that it left
-- out, by the ranks before. scores and keys are parallel.
CREATE OR REPLACE FUNCTION _rank_by(pool candidate[], stage text, keys text[], scores real[]) RETURNS candidate[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg((c.key, c.recall_score, c.recall_rank,
            CASE stage WHEN 'maxsim_bit' THEN s.score ELSE c.maxsim_bit_score END, CASE stage WHEN 'maxsim_bit' THEN s.rank ELSE c.maxsim_bit_rank END,
            CASE stage WHEN 'maxsim' THEN s.score ELSE c.maxsim_score END, CASE stage WHEN 'maxsim' THEN s.rank ELSE c.maxsim_rank END,
            CASE stage WHEN 'cross_encoder' THEN s.score END, CASE stage WHEN 'cross_encoder' THEN s.rank END)::candidate
        ORDER BY s.rank, c.maxsim_rank, c.maxsim_bit_rank, c.recall_rank)
    FROM unnest(pool) c LEFT JOIN (
        SELECT u.key, u.score, (row_number() OVER (ORDER BY u.score DESC, u.key))::int AS rank FROM unnest(keys, scores) u (key, score)) s USING (key)
$$;

-- One set-based statement over the parts of the pool's documents. A malformed one ends the stage, not the search.
-- The planner estimates every element of an array that it sees. Of a large pool it shall, as a parallel plan may come of it;
-- a small one is hidden in a subquery. The index yields parts in the order of keys; after a bitmap they would be sorted, hence copied.
CREATE OR REPLACE FUNCTION _score_by_kernel(parts text, key_type regtype, pool text[], query bytea, OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_bitmapscan = off
AS $$
BEGIN
    EXECUTE format(
        'SELECT array_agg(key::text), array_agg(score) FROM ('
        'SELECT p.key, maxsim_agg($2, p.tokens) AS score FROM %1$s p WHERE p.key = ANY (%2$s) GROUP BY p.key) scored', parts,
        format(CASE WHEN cardinality(pool) > 2000 THEN '$1::%1$s[]' ELSE '(SELECT $1::%1$s[])::%1$s[]' END, key_type))
    INTO keys, scores USING pool, query;
EXCEPTION WHEN data_exception THEN
    PERFORM _fail('PGR03', format('MaxSim of %s: %s', parts, SQLERRM));
END
$$;

-- Token matrices go over to the worker in batches of bounded size, scores come back.
CREATE OR REPLACE FUNCTION _score_by_worker(parts text, key_type regtype, pool text[], query bytea, deadline timestamptz, OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    batch text[];
    request text;
BEGIN
    keys := '{}';
    scores := '{}';
    FOR batch IN EXECUTE format(
        'SELECT array_agg(key::text) FROM ('
        'SELECT key, (sum(sum(octet_length(tokens))) OVER (ORDER BY key))::bigint / 16777216 AS batch FROM %s '
        'WHERE key = ANY ($1::%s[]) GROUP BY key) sizes GROUP BY div(batch, 1)', parts, key_type) USING pool
    LOOP
        EXECUTE format(
            'SELECT format(''{"call": "maxsim", "query": "%%s", "documents": ["%%s"]}'', encode($2, ''hex''), string_agg(d.tokens, ''","'' ORDER BY u.i)) '
            'FROM unnest($1::%1$s[]) WITH ORDINALITY u (key, i) JOIN ('
            'SELECT key, string_agg(encode(tokens, ''hex''), '''' ORDER BY part) AS tokens FROM %2$s WHERE key = ANY ($1::%1$s[]) GROUP BY key) d ON d.key = u.key',
            key_type, parts)
        INTO request USING batch, query;
        scores := scores || _scores(_call(request, deadline), cardinality(batch));
        keys := keys || batch;
    END LOOP;
END
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
    RETURN _rank_by(pool, stage, scored.keys, scored.scores);
END
$$;

-- The call itself, and the typed function that each reranker gets in front of it.

-- The stages of a call: those asked for, or all that the reranker has models and this call has input for.
CREATE OR REPLACE FUNCTION _stages(r rerankers, stages text[], has_text boolean, has_tokens boolean) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    g generations := (SELECT x FROM generations x WHERE (x.reranker, x.number) = (r.name, r.generation));
    has_query boolean := g.late_interaction_model IS NOT NULL AND (has_text OR has_tokens);
    possible text[] := ARRAY['recall']
        || CASE WHEN has_query AND g.token_bits THEN ARRAY['maxsim_bit'] ELSE '{}' END
        || CASE WHEN has_query THEN ARRAY['maxsim'] ELSE '{}' END
        || CASE WHEN r.cross_encoder_model IS NOT NULL AND has_text THEN ARRAY['cross_encoder'] ELSE '{}' END;
BEGIN
    IF NOT coalesce(stages, '{}') <@ possible THEN
        PERFORM _fail('invalid_parameter_value', format('stages %s can''t all run: possible here are %s', stages, possible),
            'maxsim wants a late_interaction_model and a query text or query_tokens, maxsim_bit also a maxsim_bit_top; cross_encoder wants a cross_encoder_model and a query text.');
    END IF;
    RETURN coalesce(stages, possible);
END
$$;

-- The reranker's settings, and its side table held: a new generation that takes over meanwhile waits with dropping the
-- old one until the caller's transaction ends. One that took over in between is read once more.
CREATE OR REPLACE FUNCTION _settled(name text) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(name);
BEGIN
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', _side(r.name, r.generation));
    EXCEPTION WHEN undefined_table THEN
        r := _reranker(name);
    END;
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
    started timestamptz := clock_timestamp();
    r rerankers := _settled(reranker);
    first_stage text := 'recall';
    deadline timestamptz;
    wants_tokens boolean;
    predicate text;
    pool candidate[];
BEGIN
    r.candidates := greatest(coalesce(candidates, r.candidates), top_k);
    r.maxsim_bit_top := coalesce(maxsim_bit_top, r.maxsim_bit_top);
    r.maxsim_top := coalesce(maxsim_top, r.maxsim_top);
    r.timeout := coalesce(timeout, r.timeout);
    PERFORM _check_call(r, query, top_k, keys, query_embedding, recall);
    PERFORM _check_query_tokens(r, query_tokens);
    PERFORM _check_settings(r);
    stages := _stages(r, stages, query IS NOT NULL, query_tokens IS NOT NULL);
    wants_tokens := stages && '{maxsim_bit,maxsim}';
    predicate := _filter_sql(r.source, filter);
    deadline := started + r.timeout;
    BEGIN
        IF keys IS NOT NULL THEN
            pool := _given(r, keys, predicate);
        ELSE
            IF query_embedding IS NULL THEN
                SELECT * INTO query_embedding, query_tokens
                FROM _encode_query(r, query, query_embedding, query_tokens, true, wants_tokens, deadline);
            END IF;
            pool := _recall(r, query_embedding, predicate, r.candidates, recall = 'exact');
        END IF;
        IF wants_tokens AND pool <> '{}' THEN
            query_tokens := (_encode_query(r, query, NULL, query_tokens, false, true, deadline)).tokens;
        END IF;
        IF 'maxsim_bit' = ANY (stages) AND pool <> '{}' THEN
            pool := _maxsim(r, pool, 'maxsim_bit', NULL, query_tokens, deadline);
        END IF;
        IF 'maxsim' = ANY (stages) AND pool <> '{}' THEN
            pool := _maxsim(r, pool, 'maxsim', CASE WHEN 'maxsim_bit' = ANY (stages) THEN r.maxsim_bit_top END, query_tokens, deadline);
        END IF;
        IF 'cross_encoder' = ANY (stages) AND pool <> '{}' THEN
            pool := _cross_encode(r, pool, query, r.maxsim_top, deadline);
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
    RETURN QUERY
        SELECT c.key, coalesce(c.cross_encoder_score, c.maxsim_score, c.maxsim_bit_score, c.recall_score), c.place::int,
            CASE WHEN c.cross_encoder_rank IS NOT NULL THEN 'cross_encoder' WHEN c.maxsim_rank IS NOT NULL THEN 'maxsim'
                 WHEN c.maxsim_bit_rank IS NOT NULL THEN 'maxsim_bit' ELSE first_stage END,
            reason IS NOT NULL, reason,
            c.recall_score, c.recall_rank, c.maxsim_bit_score, c.maxsim_bit_rank, c.maxsim_score, c.maxsim_rank,
            c.cross_encoder_score, c.cross_encoder_rank
        FROM unnest(pool) WITH ORDINALITY c (
            key, recall_score, recall_rank, maxsim_bit_score, maxsim_bit_rank, maxsim_score, maxsim_rank, cross_encoder_score, cross_encoder_rank, place)
        ORDER BY c.place LIMIT top_k;
END
$$;

-- What a call must bring.
CREATE OR REPLACE FUNCTION _check_call(r rerankers, query text, top_k int, keys text[], query_embedding vector, recall text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    dims int;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = r.source) THEN
        PERFORM _fail('undefined_table', format('the source table of reranker "%s" has been dropped', r.name),
            format('Call pgrerank.drop_reranker(%L).', r.name));
    ELSIF keys IS NULL AND query_embedding IS NULL AND coalesce(btrim(query), '') = '' THEN
        PERFORM _fail('invalid_parameter_value', 'nothing to search for: give a query, keys or query_embedding');
    ELSIF top_k IS NULL OR top_k NOT BETWEEN 1 AND 100000 THEN
        PERFORM _fail('invalid_parameter_value', format('top_k is %s, wanted 1 to 100000', coalesce(top_k::text, 'NULL')));
    ELSIF cardinality(keys) > 100000 THEN
        PERFORM _fail('invalid_parameter_value', format('keys has %s elements, wanted up to 100000', cardinality(keys)));
    ELSIF recall IS NULL OR recall NOT IN ('hnsw', 'exact') THEN
        PERFORM _fail('invalid_parameter_value', format('recall is %L, wanted hnsw or exact', recall));
    ELSIF query_embedding IS NOT NULL THEN
        dims := CASE WHEN r.embedding_column IS NOT NULL THEN (_embedding_column(r.source, r.embedding_column)).dims ELSE (
            SELECT m.dims FROM generations g JOIN models m ON m.name = g.embedding_model WHERE (g.reranker, g.number) = (r.name, r.generation)) END;
        IF dims <> vector_dims(query_embedding) THEN
            PERFORM _fail('data_exception', format('query_embedding: expected %s dimensions, not %s', dims, vector_dims(query_embedding)));
        END IF;
    END IF;
END
$$;

-- Given token vectors begin as packed ones do, and have the stored ones' dimensions; whoever scores them reads the rest.
CREATE OR REPLACE FUNCTION _check_query_tokens(r rerankers, query_tokens bytea) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    stored record;
    given int;
BEGIN
    IF query_tokens IS NULL THEN
        RETURN;
    ELSIF octet_length(query_tokens) < 16 OR substring(query_tokens FOR 4) <> 'pgrt' THEN
        PERFORM _fail('data_exception', 'query_tokens are not packed token vectors', 'pgrerank.tokens.pack makes them.');
    END IF;
    SELECT g.token_dims, coalesce(g.token_dims, m.dims) AS dims INTO stored
    FROM generations g JOIN models m ON m.name = g.late_interaction_model WHERE (g.reranker, g.number) = (r.name, r.generation);
    given := get_byte(query_tokens, 6) + 256 * get_byte(query_tokens, 7);
    IF given <> stored.dims THEN
        PERFORM _fail('data_exception', format('query_tokens: expected %s dimensions, not %s', stored.dims, given),
            CASE WHEN stored.token_dims IS NOT NULL THEN 'They want the projection in pgrerank.projections, as documents have it.' END);
    END IF;
END
$$;

-- pgrerank.NAME_search(...), typed by the source's own key and naming it as the source does.
CREATE OR REPLACE FUNCTION _create_search(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(reranker);
    taken text[] := '{query,top_k,filter,candidates,maxsim_bit_top,maxsim_top,stages,keys,query_embedding,query_tokens,recall,timeout,strict,score,rank,stage,degraded,reason,recall_score,recall_rank,maxsim_bit_score,maxsim_bit_rank,maxsim_score,maxsim_rank,cross_encoder_score,cross_encoder_rank}';
    signature text;
BEGIN
    EXECUTE format($create$
        CREATE FUNCTION pgrerank.%1$I(
            query text, top_k int DEFAULT 10, filter jsonb DEFAULT NULL, candidates int DEFAULT NULL, maxsim_bit_top int DEFAULT NULL,
            maxsim_top int DEFAULT NULL, stages text[] DEFAULT NULL, keys %2$s[] DEFAULT NULL, query_embedding vector DEFAULT NULL, query_tokens bytea DEFAULT NULL,
            recall text DEFAULT 'hnsw', timeout interval DEFAULT NULL, strict boolean DEFAULT false)
        RETURNS TABLE (
            %3$I %2$s, score real, rank int, stage text, degraded boolean, reason text, recall_score real, recall_rank int,
            maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int, cross_encoder_score real, cross_encoder_rank int)
        LANGUAGE sql VOLATILE ROWS 10
        SET search_path FROM CURRENT
        AS $body$
            SELECT s.key::%2$s, s.score, s.rank, s.stage, s.degraded, s.reason, s.recall_score, s.recall_rank,
                s.maxsim_bit_score, s.maxsim_bit_rank, s.maxsim_score, s.maxsim_rank, s.cross_encoder_score, s.cross_encoder_rank
            FROM pgrerank._search(%4$L, $1, $2, $3, $4, $5, $6, $7, $8::text[], $9, $10, $11, $12, $13) s
        $body$ $create$,
        r.name || '_search', r.key_type, CASE WHEN r.key_column = ANY (taken) THEN 'key' ELSE r.key_column END, r.name);
    EXECUTE format('COMMENT ON FUNCTION pgrerank.%I IS %L', r.name || '_search', format('Searches %s by reranker %s', r.source, r.name));
END
$$;

-- MaxSim for those who call it themselves.

-- Sum over the query's vectors of the largest inner product with any of the document's (Khattab and Zaharia 2020,
-- https://arxiv.org/abs/2004.12832). NULL where either side has no vectors. The kernel brings a faster body.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank_native') THEN
        CREATE OR REPLACE FUNCTION maxsim(query vector[], document vector[]) RETURNS real
        LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 10000
        SET search_path FROM CURRENT
        AS $maxsim$
            SELECT sum(best)::real FROM (
                SELECT max(-(q.v <#> d.v)) AS best
                FROM unnest(query) WITH ORDINALITY q (v, i) CROSS JOIN unnest(document) d (v)
                GROUP BY q.i) scores
        $maxsim$;
        COMMENT ON FUNCTION maxsim(vector[], vector[]) IS 'MaxSim of a query''s and a document''s token vectors';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _has_native() RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT to_regprocedure('pgrerank.maxsim_agg(bytea, bytea)') IS NOT NULL $$;

-- How far the encoding is.

CREATE OR REPLACE FUNCTION _status() RETURNS TABLE (
    reranker text, source regclass, generation int, next_generation int, source_rows bigint, encoded bigint, pending bigint, failed bigint,
    oldest_pending interval, last_error text
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
        SELECT max(g.number) INTO next_generation FROM generations g WHERE g.reranker = r.name AND g.number > r.generation;
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
COMMENT ON VIEW status IS 'Each reranker''s source rows, encoded and pending documents, failures with the last error; of the next generation while one is being made';

-- As an extension: pg_dump takes these tables' rows along. Side tables, search functions and triggers are no members of
-- it, and are dumped like the user's own.

DO $$
DECLARE
    relation regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank') THEN
        FOREACH relation IN ARRAY '{models,rerankers,generations,projections,pending,ticket}'::regclass[] LOOP
            PERFORM pg_extension_config_dump(relation, '');
        END LOOP;
    END IF;
END
$$;
