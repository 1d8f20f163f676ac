-- The call itself: its stages in waves, the last word on the order, and what it returns.

-- What a stage says of documents.
CREATE OR REPLACE FUNCTION _scored_by(
    _stage text, _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format('SELECT s.keys, s.scores, s.passages FROM %I($1, $2, $3, $4, $5) s', '_score_' || _stage)
    INTO keys, scores, passages USING _reranker, _generation, _call, _keys, _deadline;
END
$$;

-- Has recall make the pool, and signals order it. Of the caller's own keys all are candidates.
CREATE OR REPLACE FUNCTION _run_recall(
    _reranker rerankers, _generation generations, _call search_call, _legs text[], _scope search_scope,
    _outcome search_outcome) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _call.keys IS NULL THEN
        _outcome := _recall(_reranker, _generation, _call, _legs, _scope, _outcome);
    ELSE
        _outcome := _recall_given(_reranker, _generation, _call, _legs, _scope, _outcome);
    END IF;
    RETURN _with_signals(_reranker, _call, _legs, _outcome);
END
$$;

-- How many of the first candidates of a pool a stage scores.
CREATE OR REPLACE FUNCTION _scores_first(
    _stage text, _reranker rerankers, _call search_call, _outcome search_outcome) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT least(coalesce(cardinality(_call.keys), _reranker.candidates),
        CASE WHEN s.only_after IS NULL OR _outcome.times ? s.only_after
            THEN (to_jsonb(_reranker) ->> s.scores_first)::int END)
    FROM _stages() s WHERE s.stage = _stage
$$;

-- Has one stage score the first candidates of a pool, all of them or as many as it takes, unless it is known what it
-- says of them; the pool is in its new order after. A stage that the blend gives no weight runs for its scores' sake:
-- then all are wanted.
CREATE OR REPLACE FUNCTION _run_stage(
    _stage text, _reranker rerankers, _generation generations, _call search_call, _outcome search_outcome,
    _deadline timestamptz, _known scored_passages DEFAULT NULL) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    declared record;
    size int := _scores_first(_stage, _reranker, _call, _outcome);
    weights jsonb;
    said scored;
    found record;
BEGIN
    PERFORM _check_deadline(_deadline, _stage);
    SELECT * INTO declared FROM _stages() s WHERE s.stage = _stage;
    _call.found := _outcome.found;
    IF declared.may_stop OR declared.reads_order THEN
        _outcome := _best_of_groups(_reranker, _call, _outcome);
    END IF;
    weights := _weights_beside_signals(
        _outcome.said, _stage, CASE WHEN declared.is_blended THEN nullif(_reranker.blend, '{}') END);
    IF declared.may_stop AND _reranker.early_exit > 0 AND (weights IS NULL OR weights -> _stage > '0') THEN
        found := _said_in_slices(_stage, _reranker, _generation, _call, _outcome, size, weights, _deadline);
        said := found.said;
        _outcome.found := _outcome.found || found.read;
    ELSE
        IF _known.keys IS NOT NULL THEN
            found := _known;
        ELSE
            found := _scored_by(_stage, _reranker, _generation, _call, CASE WHEN declared.reads_order
                THEN (_head(_outcome, size)).candidates ELSE _first_keys(_outcome, size) END, _deadline);
        END IF;
        said := _said(_outcome, _stage, _by_place(_outcome.candidates, found.keys, found.scores), weights);
        _outcome.found := _outcome.found || _found(_stage, found.keys, found.passages, found.scores);
    END IF;
    _outcome := _with_said(_outcome, said);
    _outcome.times := _outcome.times || jsonb_build_object(_stage, _milliseconds(started));
    RETURN _outcome;
END
$$;

-- When a plan was begun, given how long took what is done of it.
CREATE OR REPLACE FUNCTION _started(_plan search_plan) RETURNS timestamptz
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN (_plan.begun).times IS NULL THEN clock_timestamp() ELSE (
        SELECT clock_timestamp() - sum(t.took::float8) * interval '1 millisecond'
        FROM jsonb_each_text((_plan.begun).times) t (stage, took)) END
$$;

-- A wave of a call, or what is left to do of it. A stage that fails with a condition of our own leaves the order before
-- it, and a reason: variables of PL/pgSQL keep their values when the block that assigned them is rolled back, so
-- `outcome` is what the last whole stage made of it. What was set in the database meanwhile is undone. A query that
-- could not be encoded is searched for by its words. Any other error is the caller's to see, and so is a call that
-- could search nothing at all. The call comes back with the query's vectors.
CREATE OR REPLACE FUNCTION _run_wave(
    _reranker rerankers, _plan search_plan, INOUT _call search_call, OUT outcome search_outcome)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := _started(_plan);
    deadline timestamptz := started + _reranker.timeout;
    scope search_scope := _plan.scope;
    generation generations := _confined(_generation(_reranker.name, _reranker.generation), scope.partitions);
    stage text;
    mark timestamptz;
    encoding numeric := 0;
    condition text;
BEGIN
    scope.deadline := deadline;
    outcome := _plan.begun;
    outcome.partitions := scope.partitions;
    outcome.times := coalesce(outcome.times, '{}');
    BEGIN
        IF _call.keys IS NULL AND 'dense' = ANY (_plan.legs) AND _call.query_embedding IS NULL THEN
            mark := clock_timestamp();
            _call := (_with_vectors(
                generation, ARRAY[_call], true, _plan.needs_tokens, _reranker.instruction, deadline))[1];
            encoding := _milliseconds(mark);
        END IF;
        IF outcome.pool IS NULL THEN
            PERFORM _check_deadline(deadline, 'recall');
            outcome := _run_recall(_reranker, generation, _call, _plan.legs, scope, outcome);
        END IF;
        IF _plan.needs_tokens AND outcome.pool IS NOT NULL THEN
            mark := clock_timestamp();
            _call := (_with_vectors(generation, ARRAY[_call], false, true, _reranker.instruction, deadline))[1];
            encoding := encoding + _milliseconds(mark);
        END IF;
        FOREACH stage IN ARRAY _plan.stages LOOP
            EXIT WHEN outcome.pool IS NULL;
            CONTINUE WHEN outcome.times ? stage;
            outcome := CASE stage WHEN 'cross_encoder'
                THEN _run_cross_encoder(_reranker, generation, _call, outcome, deadline)
                ELSE _run_stage(stage, _reranker, generation, _call, outcome, deadline) END;
        END LOOP;
    EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
        IF _call."strict" THEN
            RAISE;
        END IF;
        outcome.reason := SQLERRM;
        condition := SQLSTATE;
    END;
    IF outcome.pool IS NULL AND condition IS NOT NULL THEN
        outcome := _run_recall(_reranker, generation, _call, '{lexical}', scope, outcome);
        IF outcome.pool IS NULL AND _call."strict" IS NULL THEN
            PERFORM _raise(condition, format('nothing could be searched: %s; and no document shares a word with the '
                'query', outcome.reason), 'With strict => false there are no rows instead.');
        ELSIF outcome.pool IS NULL THEN
            RAISE WARNING 'pgrerank: no document found: %', outcome.reason;
        END IF;
    END IF;
    outcome.call := _call;
    outcome := _best_of_groups(_reranker, _call, outcome);
    outcome.times := outcome.times || jsonb_build_object('encode_query', encoding, 'total', _milliseconds(started));
END
$$;

-- All that a call does: one wave, or as many as it takes to find top_k groups, if recall finds more and there is time.
-- It plans itself unless a plan is given.
CREATE OR REPLACE FUNCTION _run(_reranker rerankers, _call search_call, _plan search_plan) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := _started(_plan);
    deadline timestamptz := started + _reranker.timeout;
    plan search_plan := coalesce(_plan, _plan_of(_reranker, _call));
    is_diverse boolean := _is_diverse(_reranker, _generation(_reranker.name, _reranker.generation));
    asked rerankers := _reranker;
    page int := _call.top_k;
    beyond search_call;
    wave record;
    outcome search_outcome;
    diverse search_outcome;
    ends int[];
BEGIN
    IF _call.after IS NOT NULL THEN
        _call.top_k := page + cardinality(_call.after);
        _reranker.candidates := greatest(_reranker.candidates, _call.top_k);
    END IF;
    IF is_diverse THEN
        _reranker.candidates := greatest(_reranker.candidates, least(3 * _call.top_k::bigint, 100000));
    END IF;
    wave := _run_wave(_reranker, plan, _with_rows(_reranker, _call, is_diverse));
    outcome := wave.outcome;
    IF outcome.fallback IS NOT NULL THEN
        _reranker.cross_encoder_model := _reranker.cross_encoder_fallback;
    END IF;
    _reranker.cross_encoder_fallback := NULL;  -- scores of two models don't compare
    LOOP
        ends := ends || cardinality(outcome.pool);
        diverse := CASE WHEN is_diverse AND outcome.pool IS NOT NULL
            THEN _diversified(_reranker, outcome, ends, _call.top_k, deadline) ELSE outcome END;
        IF is_diverse AND clock_timestamp() >= deadline THEN
            diverse.reason := coalesce(diverse.reason, 'the deadline passed before all was chosen for diversity');
        END IF;
        EXIT WHEN outcome.groups IS NULL OR _call.keys IS NOT NULL
            OR (cardinality((wave.outcome).candidates) >= _reranker.candidates) IS NOT TRUE
            OR _count_groups(diverse) >= _call.top_k;
        _reranker.timeout := deadline - clock_timestamp();
        IF _reranker.timeout <= '0' THEN
            diverse.reason := coalesce(diverse.reason, 'the deadline passed before top_k groups were found');
            EXIT;
        END IF;
        _reranker.maxsim_top := _unread(_reranker, wave.outcome);
        beyond := _call_beyond(_reranker, wave._call, wave.outcome);
        wave := _run_wave(_reranker, _plan_of(_reranker, beyond), beyond);
        outcome := _followed_by(outcome, wave.outcome);
    END LOOP;
    IF _call."strict" AND diverse.reason IS NOT NULL AND outcome.reason IS NULL THEN
        PERFORM _raise('PGR02', diverse.reason);
    END IF;
    diverse.returned := _call.top_k;
    outcome := _with_passages(
        asked, _page_after(_with_relevance(asked, _by_groups(diverse, _call.top_k)), _call.after, page), deadline);
    outcome.times := outcome.times || jsonb_build_object('total', _milliseconds(started));
    RETURN outcome;
END
$$;

CREATE OR REPLACE FUNCTION _search(_name text, _call search_call) RETURNS SETOF ranked
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN QUERY SELECT * FROM _answer_of(_locked_reranker(_name, _call), _call, NULL);
END
$$;

-- What a call returns, and its part in the log and in the statistics.
CREATE OR REPLACE FUNCTION _answer_of(_reranker rerankers, _call search_call, _plan search_plan) RETURNS SETOF ranked
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    outcome search_outcome := _run(_reranker, _call, _plan);
BEGIN
    IF _reranker.log_sample > 0 THEN
        PERFORM _log_search(_reranker, _call, outcome);
    END IF;
    PERFORM _count_search(_reranker, outcome);
    RETURN QUERY SELECT * FROM _ranked(outcome, outcome.returned);
END
$$;
