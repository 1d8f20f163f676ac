-- What each stage brings on a set of judgements. The searches run here; the worker measures them by ir-measures.

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
