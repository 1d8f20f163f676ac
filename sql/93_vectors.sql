-- The vectors of queries, from the worker.

-- Calls with their queries' own vectors, from the worker: those that are wanted and that the caller has not given.
CREATE OR REPLACE FUNCTION _with_vectors(
    _generation generations, _calls search_call[], _embedding boolean, _tokens boolean, _instruction text,
    _deadline timestamptz)
RETURNS search_call[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    wants_embedding boolean := _embedding AND _calls[1].query_embedding IS NULL;
    wants_tokens boolean := _tokens AND _calls[1].query_tokens IS NULL;
    answer jsonb;
BEGIN
    IF NOT (wants_embedding OR wants_tokens) THEN
        RETURN _calls;
    ELSIF wants_embedding AND _generation.embedding_model IS NULL THEN
        PERFORM _raise('invalid_parameter_value',
            format('reranker "%s" has no embedding_model to encode the query with', _generation.reranker),
            'Give query_embedding or keys, or name a model by pgrerank.alter_reranker.');
    END IF;
    answer := _ask_worker(json_build_object('call', 'encode', 'texts', ARRAY(SELECT c.query FROM unnest(_calls) c),
        'embedding', CASE WHEN wants_embedding THEN _generation.embedding_model END,
        'late_interaction', CASE WHEN wants_tokens THEN _generation.late_interaction_model END,
        'projection', _generation.projection, 'instruction', _instruction)::text,
        _deadline, cardinality(_calls)) -> 'queries';
    FOR number IN 1..cardinality(_calls) LOOP
        IF wants_embedding THEN
            _calls[number].query_embedding := _query_embedding(answer -> (number - 1), _generation.embedding_model);
        END IF;
        IF wants_tokens THEN
            _calls[number].query_tokens := _query_tokens(answer -> (number - 1));
        END IF;
    END LOOP;
    RETURN _calls;
END
$$;

-- Takes the query's embedding out of an answer, which must have the model's dimensions.
CREATE OR REPLACE FUNCTION _query_embedding(_answer jsonb, _model text) RETURNS vector
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    embedding vector := (_answer -> 'embedding')::text::vector;
BEGIN
    IF vector_dims(embedding) IS DISTINCT FROM (SELECT m.dims FROM models m WHERE m.name = _model) THEN
        PERFORM _raise('PGR03', format('the worker answered a query vector of %s dimensions, not those of model "%s"',
            coalesce(vector_dims(embedding)::text, 'no'), _model));
    END IF;
    RETURN embedding;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('PGR03', format('the worker answered a query vector that is none: %s', SQLERRM));
END
$$;

-- Takes the query's packed token vectors out of an answer.
CREATE OR REPLACE FUNCTION _query_tokens(_answer jsonb) RETURNS bytea
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    tokens bytea := decode(_answer ->> 'tokens', 'hex');
BEGIN
    IF tokens IS NULL THEN
        PERFORM _raise('PGR03', 'the worker answered no token vectors: the query has no word that its model reads');
    END IF;
    RETURN tokens;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('PGR03', format('the worker answered token vectors that are none: %s', SQLERRM));
END
$$;
