-- Why this rank: a search with the time of each stage, and which token of a document answered which of the query's.

CREATE OR REPLACE FUNCTION explain_search(
    reranker text,
    query text,
    top_k int DEFAULT 10,
    filter jsonb DEFAULT NULL,
    candidates int DEFAULT NULL,
    maxsim_bit_top int DEFAULT NULL,
    maxsim_top int DEFAULT NULL,
    stages text[] DEFAULT NULL,
    keys text[] DEFAULT NULL,
    recall text DEFAULT 'hnsw',
    generation int DEFAULT NULL,
    blend jsonb DEFAULT NULL,
    timeout interval DEFAULT NULL,
    strict boolean DEFAULT false,
    alignments boolean DEFAULT true
) RETURNS TABLE (
    key text, score real, rank int, stage text, degraded boolean, reason text,
    recall_score real, recall_rank int, maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int,
    cross_encoder_score real, cross_encoder_rank int, times jsonb, alignment jsonb
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _of_generation(_for_call(reranker, top_k, candidates, maxsim_bit_top, maxsim_top, timeout), generation);
    pool candidate[];
    first_stage text;
    aligned jsonb := '{}';
BEGIN
    r.blend := nullif(coalesce(blend, r.blend), '{}');
    SELECT * INTO pool, first_stage, reason, times FROM _run(r, query, top_k, filter, stages, keys, NULL, NULL, recall, strict);
    IF alignments AND reason IS NULL AND query IS NOT NULL THEN
        aligned := _alignments(r, query, ARRAY(SELECT c.key FROM _rows(pool, first_stage, reason, top_k) c), strict);
    END IF;
    RETURN QUERY SELECT c.*, times, aligned -> c.key FROM _rows(pool, first_stage, reason, top_k) c;
END
$$;
COMMENT ON FUNCTION explain_search IS 'A search with the rank and score of each document after every stage, the milliseconds of each stage, and how tokens were matched';

-- Another generation of a reranker than the one in use, while it is kept.
CREATE OR REPLACE FUNCTION _of_generation(r rerankers, generation int) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF generation IS NOT NULL THEN
        IF NOT EXISTS (SELECT FROM generations g WHERE (g.reranker, g.number) = (r.name, _of_generation.generation)) THEN
            PERFORM _fail('undefined_object', format('reranker "%s" has no generation %s', r.name, generation),
                format('There are: %s.', (SELECT string_agg(g.number::text, ', ' ORDER BY g.number) FROM generations g WHERE g.reranker = r.name)));
        END IF;
        r.generation := generation;
        EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', _side(r.name, generation));
    END IF;
    RETURN r;
END
$$;

-- By key, what the worker says of the first documents' texts, as the caller may read them. Its vectors are the model's own, not
-- the stored ones, which may be pooled or projected.
CREATE OR REPLACE FUNCTION _alignments(r rerankers, query text, keys text[], strict boolean) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    g generations := (SELECT x FROM generations x WHERE (x.reranker, x.number) = (r.name, r.generation));
    read record;
    answer jsonb;
BEGIN
    IF g.late_interaction_model IS NULL OR keys = '{}' THEN
        RETURN '{}';
    END IF;
    read := _texts(r, keys);
    answer := _call(json_build_object('call', 'align', 'model', g.late_interaction_model, 'query', query, 'documents', read.texts)::text,
        clock_timestamp() + greatest(r.timeout, '30 s'));
    IF jsonb_typeof(answer -> 'documents') IS DISTINCT FROM 'array' OR jsonb_array_length(answer -> 'documents') <> cardinality(read.known) THEN
        PERFORM _fail('PGR03', 'the worker answered something else than an alignment for each document');
    END IF;
    RETURN (
        SELECT jsonb_object_agg(f.key, d.document || jsonb_build_object('query', answer -> 'query'))
        FROM unnest(read.known) WITH ORDINALITY f (key, i) JOIN jsonb_array_elements(answer -> 'documents') WITH ORDINALITY d (document, i) USING (i));
EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
    IF strict THEN
        RAISE;
    END IF;
    RAISE WARNING 'pgrerank: tokens are not aligned: %', SQLERRM;
    RETURN '{}';
END
$$;
