-- The cross-encoder stage: the worker's model reads the query and each document's text together.

-- The documents' texts, as the caller may read them, in the order of their keys; of all documents where no keys are
-- given.
CREATE OR REPLACE FUNCTION _texts(_reranker rerankers, _generation generations, _keys text[])
RETURNS TABLE (key text, content text)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT d.key::text, coalesce(d.content, '') FROM %s d WHERE %s ORDER BY %s
        $sql$, _documents(_generation),
        CASE WHEN _keys IS NULL THEN 'true' ELSE _among(_reranker, 'd.key', '$1') END, _parts(_reranker, 'd.key'))
    USING _keys;
END
$$;

CREATE OR REPLACE FUNCTION texts(reranker text, keys text[] DEFAULT NULL, generation int DEFAULT NULL)
RETURNS TABLE (key text, content text)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _reranker(reranker);
BEGIN
    PERFORM _check_source(target);
    RETURN QUERY SELECT * FROM _texts(
        target, _known_generation(target.name, coalesce(generation, target.generation)), keys);
END
$$;
COMMENT ON FUNCTION texts IS
    'The texts of these documents, or of all, that a reranker''s generation is made of, as the caller may read them';

-- A document without a text is not judged: a model has some score for nothing, and often a high one. One of which
-- several passages are read has the score of the best.
CREATE OR REPLACE FUNCTION _score_cross_encoder(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    contents text[];
BEGIN
    SELECT r.* INTO keys, contents, passages
    FROM _readings(_reranker, _generation, _call.found, _keys, _reranker.cross_encoder_passages) r;
    IF keys IS NOT NULL THEN
        scores := _cross_encode(_reranker.cross_encoder_model, _call.query, contents, _reranker.instruction,
            _deadline, _generation.passage_structure);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _cross_encode(
    _model text, _query text, _documents text[], _instruction text, _deadline timestamptz,
    _structure text DEFAULT 'plain') RETURNS real[]
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _scores(_ask_worker(json_build_object(
        'call', 'cross_encode', 'model', _model, 'query', _query, 'documents', _documents,
        'instruction', _instruction, 'structure', _structure)::text, _deadline),
        cardinality(_documents))
$$;

-- Has the cross-encoder score, or its fallback: where the first fails, or leaves no more than a third of the time that
-- there was. Then the fallback reads the whole head, as scores of two models don't compare. Without a worker there is
-- neither.
CREATE OR REPLACE FUNCTION _run_cross_encoder(
    _reranker rerankers, _generation generations, _call search_call, _outcome search_outcome, _deadline timestamptz)
RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    before search_outcome := _outcome;
    has_fallback boolean := _reranker.cross_encoder_fallback <> _reranker.cross_encoder_model;
    has interval := _deadline - clock_timestamp();
    until timestamptz := CASE WHEN has_fallback THEN _deadline - has / 3 ELSE _deadline END;
BEGIN
    BEGIN
        _outcome := _run_stage('cross_encoder', _reranker, _generation, _call, _outcome, until);
    EXCEPTION WHEN SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
        IF has_fallback IS NOT TRUE THEN
            RAISE;
        END IF;
        before.fallback := format('cross-encoder %s: %s', _reranker.cross_encoder_model, SQLERRM);
        _reranker.cross_encoder_model := _reranker.cross_encoder_fallback;
        _outcome := _run_fallback(_reranker, _generation, _call, before, _deadline);
    END;
    _outcome.cross_encoder_model := _reranker.cross_encoder_model;
    RETURN _outcome;
END
$$;

-- Has the fallback score. Where it fails too, both reasons are told.
CREATE OR REPLACE FUNCTION _run_fallback(
    _reranker rerankers, _generation generations, _call search_call, _outcome search_outcome, _deadline timestamptz)
RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN _run_stage('cross_encoder', _reranker, _generation, _call, _outcome, _deadline);
EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
    PERFORM _raise(SQLSTATE, format('%s; its fallback %s: %s',
        _outcome.fallback, _reranker.cross_encoder_model, SQLERRM));
END
$$;

-- For texts that are in no reranker's table.
CREATE OR REPLACE FUNCTION cross_encode(
    model text, query text, documents text[], timeout interval DEFAULT '1 minute', instruction text DEFAULT NULL)
RETURNS real[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF model IS NULL OR query IS NULL OR documents IS NULL OR timeout IS NULL
        OR EXISTS (SELECT FROM unnest(documents) d (document) WHERE d.document IS NULL) THEN
        PERFORM _raise('null_value_not_allowed',
            'cross_encode: the model, the query, documents, one of them or the timeout is NULL');
    ELSIF NOT (_model(model, 'cross_encoder')).takes_instruction AND instruction IS NOT NULL THEN
        PERFORM _raise('invalid_parameter_value', format('model "%s" takes no instruction', model));
    ELSIF documents = '{}' THEN
        RETURN '{}';
    END IF;
    documents := ARRAY(SELECT d.document FROM unnest(documents) d (document));  -- whatever its dimensions and bounds
    RETURN _cross_encode(model, query, documents, instruction, clock_timestamp() + timeout);
END
$$;
COMMENT ON FUNCTION cross_encode IS 'Scores of texts for a query by a registered cross-encoder, in the texts'' order';
