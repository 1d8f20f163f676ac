-- The registry of models. A worker loads what is written here; stored vectors name their model by generation.

CREATE TABLE IF NOT EXISTS models (
    name text PRIMARY KEY CHECK (name ~ '^[^[:cntrl:]]{1,100}$'),
    kind text NOT NULL CHECK (kind IN ('embedding', 'late_interaction', 'cross_encoder', 'listwise')),
    loader text NOT NULL,
    source text NOT NULL CHECK (source <> ''),
    revision text,
    dims int CHECK (dims BETWEEN 1 AND 4000),
    max_tokens int CHECK (max_tokens > 0),
    options jsonb NOT NULL CHECK (jsonb_typeof(options) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    measures jsonb NOT NULL CHECK (jsonb_typeof(measures) = 'object'),
    takes_instruction boolean NOT NULL,
    CONSTRAINT loader_fits_kind CHECK (loader = ANY (CASE kind
        WHEN 'embedding' THEN ARRAY['sentence_transformer', 'http']
        WHEN 'late_interaction' THEN ARRAY['multi_vector_encoder', 'sentence_transformer', 'http']
        WHEN 'cross_encoder' THEN ARRAY['cross_encoder', 'onnx', 'http']
        ELSE ARRAY['http'] END)),
    CONSTRAINT vectors_have_dims CHECK ((kind IN ('embedding', 'late_interaction')) = (dims IS NOT NULL))
);
COMMENT ON TABLE models IS 'Models that rerankers may name';
COMMENT ON COLUMN models.loader IS 'Which sentence-transformers class (or onnx, or http) loads it';
COMMENT ON COLUMN models.source IS
    'Hub name, folder, package://PACKAGE/FOLDER inside an installed Python package, or the URL of an endpoint';
COMMENT ON COLUMN models.dims IS 'Dimensions of its vectors; none where it makes none';
COMMENT ON COLUMN models.max_tokens IS 'Tokens of its window; longer texts are encoded in several';
COMMENT ON COLUMN models.takes_instruction IS 'Whether it reads an instruction with a query';
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
    measures jsonb DEFAULT '{}',
    takes_instruction boolean DEFAULT false
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    registered models;
BEGIN
    SELECT * INTO registered FROM models m WHERE m.name = register_model.name;
    loader := coalesce(loader, CASE kind
        WHEN 'embedding' THEN 'sentence_transformer'
        WHEN 'late_interaction' THEN 'multi_vector_encoder'
        WHEN 'listwise' THEN 'http'
        ELSE 'cross_encoder' END);
    options := coalesce(options, '{}');
    measures := coalesce(measures, '{}');
    takes_instruction := coalesce(takes_instruction, false);
    IF (kind, loader, source, revision, dims, options, takes_instruction) IS NOT DISTINCT FROM (
        registered.kind, registered.loader, registered.source, registered.revision, registered.dims,
        registered.options, registered.takes_instruction) THEN
        UPDATE models m SET measures = m.measures || register_model.measures WHERE m.name = register_model.name;
        RETURN;
    END IF;
    DELETE FROM models m WHERE m.name = register_model.name;
    INSERT INTO models (
        name, kind, loader, source, revision, dims, max_tokens, options, measures, takes_instruction)
    VALUES (name, kind, loader, source, revision, dims, max_tokens, options, measures, takes_instruction);
EXCEPTION WHEN foreign_key_violation THEN
    PERFORM _raise('dependent_objects_still_exist',
        format('model "%s" is used by %s and can''t be changed: stored vectors would no longer fit',
            name, _users_of(name)),
        'Register the new one under another name and call pgrerank.alter_reranker.');
END
$$;
COMMENT ON FUNCTION register_model IS
    'Registers a model: name, kind (embedding, late_interaction, cross_encoder, listwise), where it comes from';

-- The rerankers that use a model, each with the generation that does where it isn't the one in use.
CREATE OR REPLACE FUNCTION _users_of(_model text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN (
        SELECT string_agg(DISTINCT CASE WHEN s.kept_in = 'rerankers' OR g.number = r.generation THEN quote_ident(r.name)
            ELSE format('%I (generation %s)', r.name, g.number) END, ', ')
        FROM rerankers r JOIN generations g ON g.reranker = r.name JOIN _settings() s ON s.refers_to = 'models'
        WHERE CASE s.kept_in WHEN 'rerankers' THEN to_jsonb(r) ELSE to_jsonb(g) END ->> s.setting = _model);
END
$$;

CREATE OR REPLACE FUNCTION drop_model(name text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    DELETE FROM models m WHERE m.name = drop_model.name;
    IF NOT FOUND THEN
        PERFORM _raise('undefined_object', format('model "%s" is not registered', name));
    END IF;
EXCEPTION WHEN foreign_key_violation THEN
    PERFORM _raise('dependent_objects_still_exist', format('model "%s" is used by %s', name, _users_of(name)),
        'Call pgrerank.alter_reranker with another model, or pgrerank.drop_reranker; a generation that another took '
        'over from is kept for grace_period.');
END
$$;
COMMENT ON FUNCTION drop_model IS 'Forgets a model that no reranker uses';

-- Returns the model of that name and kind, or raises an error that says which there are.
CREATE OR REPLACE FUNCTION _model(_name text, _kind text) RETURNS models
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    registered models;
    names text;
BEGIN
    SELECT * INTO registered FROM models m WHERE m.name = _name;
    IF registered.kind = _kind THEN
        RETURN registered;
    END IF;
    SELECT coalesce(string_agg(quote_ident(m.name), ', ' ORDER BY m.name), 'none') INTO names
    FROM models m WHERE m.kind = _kind;
    IF registered.name IS NULL THEN
        PERFORM _raise('undefined_object', format('model "%s" is not registered', _name),
            format('Registered models of kind %s: %s. Add one by pgrerank.register_model or `pgrerank models add`.',
                _kind, names));
    END IF;
    PERFORM _raise('wrong_object_type',
        format('model "%s" is of kind %s, not %s', _name, registered.kind, _kind),
        format('Registered models of kind %s: %s.', _kind, names));
END
$$;
