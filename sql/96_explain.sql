-- Why this rank: a search with the time of each stage, and which token of a document answered which of the query's; or
-- all that was said of all candidates, as one value.

CREATE OR REPLACE FUNCTION _explain(_name text, _call search_call, _alignments boolean)
RETURNS TABLE (document ranked, scored jsonb, times jsonb, alignment jsonb)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    reranker rerankers := _locked_reranker(_name, _call);
    outcome search_outcome;
    aligned jsonb := '{}';
BEGIN
    reranker.passages := greatest(reranker.passages, 1);
    outcome := _run(reranker, _call, NULL);
    IF _alignments AND outcome.reason IS NULL AND _call.query IS NOT NULL THEN
        aligned := _aligned(reranker, _call.query, outcome.shown, _call."strict");
    END IF;
    RETURN QUERY
        SELECT d, _scored_counts(outcome), outcome.times, aligned -> d.key FROM _ranked(outcome, outcome.returned) d;
END
$$;

-- Arrays are parallel to the keys; NULL where a stage said nothing of a document.
CREATE OR REPLACE FUNCTION _trace(_name text, _call search_call) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    reranker rerankers := _locked_reranker(_name, _call);
    outcome search_outcome := _run(reranker, _call, NULL);
BEGIN
    RETURN (
        SELECT jsonb_build_object(
            'generation', reranker.generation,
            'candidates', coalesce(cardinality(_call.keys), reranker.candidates),
            'keys', ARRAY(SELECT d.key FROM _ranked(outcome, cardinality(outcome.pool)) d ORDER BY d.rank),
            'scores', coalesce(jsonb_object_agg(b.stage, b.scores) FILTER (WHERE b.stage IS NOT NULL), '{}'),
            'ranks', coalesce(jsonb_object_agg(b.stage, b.ranks) FILTER (WHERE b.stage IS NOT NULL), '{}'),
            'relevance', ARRAY(
                SELECT d.relevance FROM _ranked(outcome, cardinality(outcome.pool)) d ORDER BY d.rank),
            'passages', (
                SELECT coalesce(jsonb_object_agg(s.key, jsonb_build_array(s.value -> 'start', s.value -> 'end')), '{}')
                FROM jsonb_each(outcome.shown) s),
            'signals', _signal_parts(reranker, outcome),
            'units', _score_units(_generation(reranker.name, reranker.generation), outcome.call),
            'left_out', outcome.left_out,
            'scored', _scored_counts(outcome),
            'times', outcome.times,
            'instruction', reranker.instruction,
            'cross_encoder_model', outcome.cross_encoder_model,
            'fallback', outcome.fallback,
            'reason', outcome.reason)
        FROM _by_stage(outcome, cardinality(outcome.pool)) b);
END
$$;

-- By key, what the worker says of the passages that are shown. Its vectors are the model's own, not the stored ones,
-- which may be pooled or projected; an endpoint does not say which token one is of. Reading texts again takes longer
-- than a search, and people wait for it: it has half a minute, or the call's timeout if that is longer.
CREATE OR REPLACE FUNCTION _aligned(_reranker rerankers, _query text, _shown jsonb, _strict boolean) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    generation generations := _generation(_reranker.name, _reranker.generation);
    readable text[];
    contents text[];
    answer jsonb;
BEGIN
    SELECT array_agg(s.key), array_agg(left(s.value ->> 'text', _most_characters())) INTO readable, contents
    FROM jsonb_each(_shown) s;
    IF generation.late_interaction_model IS NULL OR readable IS NULL OR EXISTS (
        SELECT FROM models m WHERE m.name = generation.late_interaction_model AND m.loader = 'http') THEN
        RETURN '{}';
    END IF;
    answer := _ask_worker(json_build_object('call', 'align', 'model', generation.late_interaction_model,
        'query', _query, 'documents', contents)::text, clock_timestamp() + greatest(_reranker.timeout, '30 s'),
        8 * cardinality(contents));  -- spans, heat and more of each token
    IF jsonb_typeof(answer -> 'documents') IS DISTINCT FROM 'array'
        OR jsonb_array_length(answer -> 'documents') <> cardinality(readable) THEN
        PERFORM _raise('PGR03', 'the worker answered something else than an alignment for each document');
    END IF;
    RETURN (
        SELECT jsonb_object_agg(k.key, d.document || jsonb_build_object('query', answer -> 'query'))
        FROM unnest(readable) WITH ORDINALITY k (key, place)
        JOIN jsonb_array_elements(answer -> 'documents') WITH ORDINALITY d (document, place) USING (place));
EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
    IF _strict THEN
        RAISE;
    END IF;
    RAISE WARNING 'pgrerank: tokens are not aligned: %', SQLERRM;
    RETURN '{}';
END
$$;

-- explain_search(reranker, query, …, alignments) and trace(reranker, query, …) take what a search takes.
DO $do$
DECLARE
    signature record := _call_signature('text');
BEGIN
    PERFORM _define_function('explain_search',
        format('reranker text, %s, alignments boolean DEFAULT true', signature.arguments),
        format('TABLE (%s, scored jsonb, times jsonb, alignment jsonb)', (_attributes('ranked')).columns),
        format($definition$
            LANGUAGE sql VOLATILE ROWS 10
            SET search_path FROM CURRENT
            AS $body$
                SELECT (e.document).*, e.scored, e.times, e.alignment
                FROM pgrerank._explain((pgrerank._followed(reranker)).name, %s, alignments) e
            $body$
            $definition$, signature.call));
    PERFORM _define_function('trace', format('reranker text, %s', signature.arguments), 'jsonb',
        format($definition$
            LANGUAGE sql VOLATILE
            SET search_path FROM CURRENT
            AS $body$ SELECT pgrerank._trace((pgrerank._followed(reranker)).name, %s) $body$
            $definition$, signature.call));
END
$do$;
COMMENT ON FUNCTION explain_search IS
    'A search with the rank and score of each document after every stage, how many documents each stage scored and in '
    'how many milliseconds, and how tokens were matched';
COMMENT ON FUNCTION trace IS
    'A search as one value: the keys of all candidates in their last order, scores and ranks by stage, milliseconds';
