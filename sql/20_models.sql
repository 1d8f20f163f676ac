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
    measures jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(measures) = 'object'),
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
COMMENT ON COLUMN models.measures IS 'How good it is and on what: what `pgrerank gate` found, for example';
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
