-- The listwise stage: a language model reads the best documents together, and says in which order they belong.

-- A document's score is how many of the others it is put before. Of documents without a text nothing is said.
CREATE OR REPLACE FUNCTION _score_listwise(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    contents text[];
BEGIN
    SELECT array_agg(t.key ORDER BY k.place), array_agg(t.content ORDER BY k.place) INTO keys, contents
    FROM _texts(_reranker, _generation, _keys) t
    JOIN unnest(_keys) WITH ORDINALITY k (key, place) USING (key)
    WHERE t.content ~ '\S';
    IF keys IS NOT NULL THEN
        scores := _scores(_ask_worker(json_build_object(
            'call', 'listwise', 'model', _reranker.listwise_model, 'query', _call.query, 'documents', contents,
            'instruction', _reranker.instruction)::text, _deadline), cardinality(contents));
    END IF;
END
$$;
