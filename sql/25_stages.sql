-- The stages of a search, in the order in which they run. A stage is declared here and lives in a file of its own,
-- which defines _score_STAGE: given candidates, it returns the keys and scores of those that it can score, or of their
-- passages where it tells these apart; a leg of recall has _recall_STAGE besides, which looks for candidates. What else
-- names stages (columns of a search, weights of a blend, traces, the log) is made of this table.
--   is_leg         whether it makes the pool, alone or together with the other leg of recall
--   scores_first   the setting that says how many of the best so far it scores
--   only_after     the stage without which it scores as many as there are candidates
--   needs_tokens   whether it wants token vectors of the query
--   may_stop       whether it reads them in slices, best first, until early_exit says that it has read enough
--   is_blended     whether its scores are blended with those before; else they overrule them
--   reads_order    whether it is given candidates in their order
--   runs_if        an expression over reranker r, generation g, has_text and has_tokens
CREATE OR REPLACE FUNCTION _stages() RETURNS TABLE (
    place bigint, stage text, is_leg boolean, scores_first text, only_after text, needs_tokens boolean,
    may_stop boolean, is_blended boolean, reads_order boolean, runs_if text, wants text)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT row_number() OVER (), s.* FROM (VALUES
        ('dense', true, NULL, NULL, false, false, true, false,
            'g.embedding_model IS NOT NULL OR r.embedding_column IS NOT NULL',
            'dense wants an embedding_model or embedding_column'),
        ('lexical', true, NULL, NULL, false, false, true, false, 'has_text', 'lexical wants a query text'),
        ('maxsim_bit', false, 'candidates', NULL, true, false, false, false,
            'g.late_interaction_model IS NOT NULL AND g.token_bits AND (has_text OR has_tokens)',
            'maxsim_bit wants what maxsim wants, and a maxsim_bit_top'),
        ('maxsim', false, 'maxsim_bit_top', 'maxsim_bit', true, false, true, false,
            'g.late_interaction_model IS NOT NULL AND (has_text OR has_tokens)',
            'maxsim wants a late_interaction_model and a query text or query_tokens'),
        ('cross_encoder', false, 'maxsim_top', NULL, false, true, true, false,
            'r.cross_encoder_model IS NOT NULL AND has_text',
            'cross_encoder wants a cross_encoder_model and a query text'),
        ('listwise', false, 'listwise_top', NULL, false, false, false, true,
            'r.listwise_model IS NOT NULL AND has_text',
            'listwise wants a listwise_model and a query text')
    ) s (stage, is_leg, scores_first, only_after, needs_tokens, may_stop, is_blended, reads_order, runs_if, wants)
$$;

-- Whether a value is weights by stage, numbers from 0 to 1000, one of them above 0, of stages that are blended; or
-- nothing at all, which has later stages overrule earlier ones.
CREATE OR REPLACE FUNCTION _is_blend(_blend jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF jsonb_typeof(_blend) IS DISTINCT FROM 'object' THEN
        RETURN false;
    END IF;
    RETURN (
        SELECT coalesce(bool_and(
                w.key IN (SELECT s.stage FROM _stages() s WHERE s.is_blended)
                AND CASE jsonb_typeof(w.value) WHEN 'number' THEN w.value::numeric BETWEEN 0 AND 1000 ELSE false END)
            AND bool_or(w.value > '0'), true)
        FROM jsonb_each(_blend) w);
END
$$;
