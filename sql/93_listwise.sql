-- The listwise stage: a language model reads the best documents together, and says in which order they belong.

-- A document's score is how many of the others it is put before. Of documents without a text nothing is said.
CREATE OR REPLACE FUNCTION _score_listwise(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    contents text[];
BEGIN
    SELECT r.keys, r.contents INTO keys, contents FROM _readings(_reranker, _generation, _call.found, _keys, 1) r;
    IF keys IS NOT NULL THEN
        scores := _scores(_ask_worker(json_build_object(
            'call', 'listwise', 'model', _reranker.listwise_model, 'query', _call.query, 'documents', contents,
            'instruction', _reranker.instruction, 'structure', _generation.passage_structure)::text, _deadline),
            cardinality(contents));
    END IF;
END
$$;
