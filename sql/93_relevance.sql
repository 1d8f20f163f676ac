-- Relevance: the probability that a document is relevant to the query, which means the same for every query. It is a
-- logistic regression on the raw scores of the stages that scored the document, fitted on judged queries by
-- `pgrerank calibrate`, one for each set of stages (Platt 1999). What ranks is the blend, whose scores mean something
-- within one query alone.

CREATE TABLE IF NOT EXISTS calibrations (
    reranker text NOT NULL,
    generation int NOT NULL,
    stages text[] NOT NULL CHECK (stages <> '{}'),
    cross_encoder_model text,
    instruction text,
    intercept double precision NOT NULL CHECK (intercept > '-Infinity' AND intercept < 'Infinity'),
    slopes jsonb NOT NULL CHECK (jsonb_typeof(slopes) = 'object' AND slopes ?& stages),
    qrels_set text NOT NULL,
    queries int NOT NULL,
    documents int NOT NULL,
    relevant int NOT NULL,
    ece double precision NOT NULL,
    brier double precision NOT NULL,
    fitted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (reranker, generation, stages),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
COMMENT ON TABLE calibrations IS 'What makes a relevance of the scores of a set of stages, as pgrerank calibrate found';
COMMENT ON COLUMN calibrations.stages IS 'The stages that have scored a document, in their order';
COMMENT ON COLUMN calibrations.cross_encoder_model IS
    'The cross-encoder of whose scores it is; NULL where that is no stage of it';
COMMENT ON COLUMN calibrations.instruction IS 'The reranker''s instruction then, by which its models scored';
COMMENT ON COLUMN calibrations.intercept IS 'The log odds of relevance where all scores are 0';
COMMENT ON COLUMN calibrations.slopes IS
    'By stage, what one more adds to the log odds: MaxSim by token vector of the query, BM25 by the IDF of its words';
COMMENT ON COLUMN calibrations.qrels_set IS 'The judgements that it was fitted on';
COMMENT ON COLUMN calibrations.queries IS 'How many queries it was fitted on';
COMMENT ON COLUMN calibrations.documents IS 'How many documents, the first ten of each query';
COMMENT ON COLUMN calibrations.relevant IS 'How many of the documents are relevant';
COMMENT ON COLUMN calibrations.ece IS
    'Expected calibration error, on queries that were left out of the fit: how far relevance and the share of relevant '
    'documents are apart';
COMMENT ON COLUMN calibrations.brier IS 'The mean square of relevance less 1 where relevant, else 0, on the same';
GRANT SELECT ON calibrations TO PUBLIC;

-- When the generation was calibrated; NULL where it was not, or not with the reranker's present cross-encoder and
-- instruction.
CREATE OR REPLACE FUNCTION _calibrated_at(_reranker rerankers) RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT min(c.fitted_at) FROM calibrations c
    WHERE (c.reranker, c.generation) = (_reranker.name, _reranker.generation)
      AND c.instruction IS NOT DISTINCT FROM _reranker.instruction
    HAVING bool_or(c.cross_encoder_model IS NOT DISTINCT FROM _reranker.cross_encoder_model)
$$;

-- By what the scores of a stage are divided to be compared between queries: a MaxSim, which is a sum over the query's
-- token vectors, by their number (in the bytes from 8 on of packed ones); BM25, a sum over its words, by that of their
-- IDFs.
CREATE OR REPLACE FUNCTION _score_units(_generation generations, _call search_call) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'lexical', (
            SELECT sum(w.idf) FROM _query_words(_generation, _word_statistics(_generation), _call.query) w),
        'maxsim', nullif(get_byte(_call.query_tokens, 8) + 256 * get_byte(_call.query_tokens, 9), 0)))
$$;

-- The scores of one stage.
CREATE OR REPLACE FUNCTION _scores_of(_said scored[], _stage text) RETURNS real[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT s.scores FROM unnest(_said) s WHERE s.stage = _stage $$;

-- _relevances(reranker, said, units): the relevance of candidates in their places; NULL where the stages that have
-- scored one are not calibrated together. It is written out of the stages whose scores are blended.
DO $do$
DECLARE
    calibrated text := format($sql$
        SELECT k.intercept, %s FROM calibrations k
        WHERE (k.reranker, k.generation) = (_reranker.name, _reranker.generation)
          AND k.instruction IS NOT DISTINCT FROM _reranker.instruction
          AND (NOT k.slopes ? 'cross_encoder' OR k.cross_encoder_model = _reranker.cross_encoder_model)
        $sql$, (
        SELECT string_agg(format('(k.slopes ->> %1$L)::float8 / coalesce((_units ->> %1$L)::float8, 1) AS %1$I',
            s.stage), ', ' ORDER BY s.place)
        FROM _stages() s WHERE s.is_blended));
    same_stages text := (
        SELECT string_agg(format('(c.%1$I IS NULL) = (d.%1$I IS NULL)', s.stage), ' AND ') FROM _stages() s
        WHERE s.is_blended);
BEGIN
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION _relevances(_reranker rerankers, _said scored[], _units jsonb) RETURNS real[]
        LANGUAGE sql STABLE
        SET search_path FROM CURRENT
        AS $body$
            SELECT array_agg(CASE WHEN c.intercept IS NOT NULL
                THEN (1 / (1 + exp(-least(greatest(c.intercept + %s, -80), 80))))::real END ORDER BY d.place)
            FROM unnest(%s) WITH ORDINALITY d (%s, place)
            LEFT JOIN %s
        $body$ $sql$, (
        SELECT string_agg(format('coalesce(c.%1$I * d.%1$I, 0)', s.stage), ' + ' ORDER BY s.place)
        FROM _stages() s WHERE s.is_blended), (
        SELECT string_agg(format('_scores_of(_said, %L)', s.stage), ', ' ORDER BY s.place)
        FROM _stages() s WHERE s.is_blended), (
        SELECT string_agg(quote_ident(s.stage), ', ' ORDER BY s.place) FROM _stages() s WHERE s.is_blended),
        format('(%s) c ON %s', calibrated, same_stages));
END
$do$;

-- The outcome with the relevance of its candidates; where there is a min_relevance, with those alone that are returned.
-- A caller's own key_scores may be anything, and tell of none, nor does a fallback, which is not what was calibrated.
CREATE OR REPLACE FUNCTION _with_relevance(_reranker rerankers, _outcome search_outcome) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    generation generations := _generation(_reranker.name, _reranker.generation);
    telling scored[];
BEGIN
    IF _calibrated_at(_reranker) IS NOT NULL THEN
        telling := ARRAY(
            SELECT s::scored FROM unnest(_outcome.said) s
            WHERE (s.stage <> 'dense' OR (_outcome.call).key_scores IS NULL)
              AND (s.stage <> 'cross_encoder' OR _outcome.cross_encoder_model = _reranker.cross_encoder_model));
        _outcome.relevances := _relevances(_reranker, telling, _score_units(generation, _outcome.call));
    END IF;
    IF _reranker.min_relevance IS NULL OR _outcome.pool IS NULL THEN
        RETURN _outcome;
    END IF;
    RETURN _relevant(_reranker, _outcome);
END
$$;

-- The outcome with those alone of what would be returned that have min_relevance. None moves up for one that is left
-- out: it stands lower, and further down the same scores are of documents less relevant. For one that no stage has
-- scored nothing speaks; where one was scored, and its relevance is not known, neither to keep nor to leave it out
-- would be right.
CREATE OR REPLACE FUNCTION _relevant(_reranker rerankers, _outcome search_outcome) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    first int[] := _outcome.pool[:_outcome.returned];
    highest real;
    unknown int;
BEGIN
    SELECT array_agg(p.place ORDER BY p.standing) FILTER (WHERE r.relevance >= _reranker.min_relevance),
        max(r.relevance), count(*) FILTER (WHERE r.relevance IS NULL AND EXISTS (
            SELECT FROM unnest(_outcome.said) s WHERE s.scores[p.place] IS NOT NULL))
    INTO _outcome.pool, highest, unknown
    FROM unnest(first) WITH ORDINALITY p (place, standing)
    LEFT JOIN unnest(_outcome.relevances) WITH ORDINALITY r (relevance, place) USING (place);
    IF unknown > 0 THEN
        PERFORM _raise('object_not_in_prerequisite_state', format('reranker "%s": min_relevance is %s, and the '
            'relevance of %s of %s documents is not known: generation %s is not calibrated for what has scored them',
            _reranker.name, _reranker.min_relevance, unknown, cardinality(first), _reranker.generation),
            CASE WHEN _reranker.instruction IS DISTINCT FROM (_reranker(_reranker.name)).instruction
                THEN 'A calibration holds for the reranker''s own instruction: leave out instruction, or give '
                    'min_relevance => 0.'
                ELSE format('Run pgrerank calibrate %s --qrels SET, or give min_relevance => 0.', _reranker.name) END);
    END IF;
    _outcome.pool := coalesce(_outcome.pool, '{}');
    _outcome.left_out := cardinality(first) - cardinality(_outcome.pool);
    _outcome.returned := cardinality(_outcome.pool);
    IF _outcome.pool = '{}' AND _outcome.reason IS NOT NULL THEN
        RAISE WARNING 'pgrerank: none of % documents has a relevance of %, the highest is %, in a degraded search: %',
            cardinality(first), _reranker.min_relevance, highest, _outcome.reason;
    ELSIF _outcome.pool = '{}' THEN
        RAISE NOTICE 'pgrerank: none of % documents has a relevance of %, the highest is %',
            cardinality(first), _reranker.min_relevance, highest;
    END IF;
    RETURN _outcome;
END
$$;
