-- The call itself.

-- The reranker as a call wants it, with its generation. The side table is held: a new generation that takes over
-- meanwhile waits with dropping the old one until the caller's transaction ends. One that took over in between is
-- read once more.
CREATE OR REPLACE FUNCTION _locked_reranker(_name text, _call search_call) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    reranker rerankers := _reranker(_name);
    generation generations;
BEGIN
    IF _call.generation IS NOT NULL THEN
        PERFORM _known_generation(_name, _call.generation);
        reranker.generation := _call.generation;
    END IF;
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', _side_table(_name, reranker.generation));
    EXCEPTION WHEN undefined_table THEN
        reranker := _reranker(_name);
    END;
    IF _overlay(_call.settings) <> '{}' THEN
        reranker := jsonb_populate_record(reranker, _overlay(_call.settings));
        generation := _generation(_name, reranker.generation);
        PERFORM _check_settings(reranker, generation);
        PERFORM _check_instruction(reranker, generation);
        PERFORM _check_group(reranker);
    END IF;
    reranker.candidates := greatest(reranker.candidates, _call.top_k);
    RETURN reranker;
END
$$;

-- The rules that a call must keep. Each raises its own error.
CREATE OR REPLACE FUNCTION _check_call(_reranker rerankers, _generation generations, _call search_call) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    most int := 100000;
    embedding_dims int;
    broken record;
BEGIN
    PERFORM _check_source(_reranker);
    IF _call.query_embedding IS NOT NULL THEN
        embedding_dims := CASE WHEN _reranker.embedding_column IS NOT NULL
            THEN (_embedding_column(_reranker.source, _reranker.embedding_column)).dims
            ELSE (SELECT m.dims FROM models m WHERE m.name = _generation.embedding_model) END;
    END IF;
    SELECT * INTO broken FROM (VALUES
        ('invalid_parameter_value',
            _call.keys IS NULL AND _call.query_embedding IS NULL AND coalesce(btrim(_call.query), '') = '',
            'nothing to search for: give a query, keys or query_embedding'),
        ('invalid_parameter_value', cardinality(_call.after) > most,
            format('after has %s elements, expected up to %s', cardinality(_call.after), most)),
        ('invalid_parameter_value',
            _call.top_k > most AND _call.top_k - cardinality(_call.after) BETWEEN 1 AND most,
            format('after has %s elements and top_k is %s, expected up to %s together',
                cardinality(_call.after), _call.top_k - cardinality(_call.after), most)),
        ('invalid_parameter_value', (_call.top_k BETWEEN 1 AND most) IS NOT TRUE,
            format('top_k is %s, expected 1 to %s', coalesce(_call.top_k::text, 'NULL'), most)),
        ('invalid_parameter_value', cardinality(_call.keys) > most,
            format('keys has %s elements, expected up to %s', cardinality(_call.keys), most)),
        ('invalid_parameter_value',
            _call.key_scores IS NOT NULL AND cardinality(_call.key_scores) IS DISTINCT FROM cardinality(_call.keys),
            format('key_scores has %s elements, expected one for each of the %s keys',
                cardinality(_call.key_scores), coalesce(cardinality(_call.keys), 0))),
        ('invalid_parameter_value', (
                SELECT bool_or(s.score = 'NaN' OR abs(s.score) > 3e38) FROM unnest(_call.key_scores) s (score)),
            'key_scores has one that is no number of type real, expected numbers or NULL'),
        ('invalid_parameter_value', (_call.recall IN ('auto', 'hnsw', 'exact')) IS NOT TRUE,
            format('recall is %L, expected auto, hnsw or exact', _call.recall)),
        ('data_exception', embedding_dims <> vector_dims(_call.query_embedding),
            format('query_embedding: expected %s dimensions, not %s',
                embedding_dims, vector_dims(_call.query_embedding)))
    ) rules (code, is_broken, message)
    WHERE rules.is_broken LIMIT 1;
    IF FOUND THEN
        PERFORM _raise(broken.code, broken.message);
    ELSIF _call.query_tokens IS NOT NULL THEN
        PERFORM _check_query_tokens(_generation, _call.query_tokens);
    END IF;
END
$$;

-- Given token vectors begin as packed ones do (16 bytes, the dimensions in the seventh and eighth), and have the stored
-- ones' dimensions; whoever scores them reads the rest.
CREATE OR REPLACE FUNCTION _check_query_tokens(_generation generations, _tokens bytea) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    stored_dims int := coalesce(_generation.token_dims, (
        SELECT m.dims FROM models m WHERE m.name = _generation.late_interaction_model));
    given_dims int;
BEGIN
    IF octet_length(_tokens) < 16 OR substring(_tokens FOR 4) <> 'pgrt' THEN
        PERFORM _raise('data_exception', 'query_tokens are not packed token vectors',
            'pgrerank.tokens.pack makes them.');
    END IF;
    given_dims := get_byte(_tokens, 6) + 256 * get_byte(_tokens, 7);
    IF given_dims <> stored_dims THEN
        PERFORM _raise('data_exception',
            format('query_tokens: expected %s dimensions, not %s', stored_dims, given_dims),
            CASE WHEN _generation.token_dims IS NOT NULL
                 THEN 'They want the projection in pgrerank.projections, as documents have it.' END);
    END IF;
END
$$;

-- _possible_stages(reranker, generation, has_text, has_tokens): the stages that the reranker has models and a call has
-- input for. It is written out of the stages' own conditions.
DO $do$
BEGIN
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION _possible_stages(
            _reranker rerankers, _generation generations, _has_text boolean, _has_tokens boolean) RETURNS text[]
        LANGUAGE sql STABLE
        SET search_path FROM CURRENT
        AS $body$
            SELECT array_agg(s.stage ORDER BY s.place)
            FROM (SELECT (_reranker).*) r, (SELECT (_generation).*) g,
                (SELECT _has_text AS has_text, _has_tokens AS has_tokens) h,
                LATERAL (VALUES %s) s (place, stage, is_possible)
            WHERE s.is_possible
        $body$ $sql$, (SELECT string_agg(format('(%s, %L, %s)', s.place, s.stage, s.runs_if), ', ') FROM _stages() s));
END
$do$;

-- The stages of a call, in the order in which they run: those asked for, or all that are possible and that the blend
-- gives a weight. Legs of recall stand apart: where none is asked for, those run that would otherwise.
CREATE OR REPLACE FUNCTION _stages_of_call(
    _reranker rerankers, _generation generations, _call search_call,
    OUT legs text[], OUT others text[], OUT need_tokens boolean)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    possible text[] := _possible_stages(
        _reranker, _generation, coalesce(_call.query ~ '\S', false), _call.query_tokens IS NOT NULL);
    weighted text[] := _weighted(possible, _reranker.blend);
    wanted text[] := coalesce(_call.stages, weighted);
BEGIN
    IF NOT wanted <@ coalesce(possible, '{}') THEN
        PERFORM _raise('invalid_parameter_value',
            format('stages %s can''t all run: possible here are %s', wanted, possible),
            (SELECT string_agg(s.wants, '; ' ORDER BY s.place) || '.' FROM _stages() s));
    END IF;
    SELECT coalesce(
            array_agg(s.stage ORDER BY s.place) FILTER (WHERE s.is_leg AND s.stage = ANY (wanted)),
            array_agg(s.stage ORDER BY s.place) FILTER (WHERE s.is_leg AND s.stage = ANY (weighted)),
            '{dense}'),
        coalesce(array_agg(s.stage ORDER BY s.place) FILTER (WHERE NOT s.is_leg AND s.stage = ANY (wanted)), '{}'),
        coalesce(bool_or(s.needs_tokens) FILTER (WHERE s.stage = ANY (wanted)), false)
    INTO legs, others, need_tokens
    FROM _stages() s;
END
$$;

-- Of these stages those that a blend gives a weight, and those whose scores aren't blended, if what follows them runs.
-- Where no leg of recall has a weight, all make the pool; nothing is left out where there is no blend.
CREATE OR REPLACE FUNCTION _weighted(_stages text[], _blend jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(s.stage)
    FROM (
        SELECT s.*, coalesce(_blend -> s.stage > '0', false) AS has_weight FROM _stages() s
        WHERE s.stage = ANY (_stages)) s
    WHERE _blend = '{}' OR s.has_weight
        OR (s.is_leg AND _weights_of(_blend, ARRAY(
            SELECT l.stage FROM _stages() l WHERE l.is_leg AND l.stage = ANY (_stages))) IS NULL)
        OR (NOT s.is_blended AND (
            SELECT coalesce(bool_or(_blend -> l.stage > '0'), true) FROM _stages() l WHERE l.only_after = s.stage))
$$;

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

-- Has one stage score the first candidates of a pool, all of them or as many as it takes; the pool is in its new order
-- after. A stage that the blend gives no weight runs for its scores' sake: then all are wanted.
CREATE OR REPLACE FUNCTION _run_stage(
    _stage text, _reranker rerankers, _generation generations, _call search_call, _outcome search_outcome,
    _deadline timestamptz) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    declared record;
    size int := coalesce(cardinality(_call.keys), _reranker.candidates);
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
    IF declared.only_after IS NULL OR _outcome.times ? declared.only_after THEN
        size := least(size, (to_jsonb(_reranker) ->> declared.scores_first)::int);
    END IF;
    weights := _weights_beside_signals(
        _outcome.said, _stage, CASE WHEN declared.is_blended THEN nullif(_reranker.blend, '{}') END);
    IF declared.may_stop AND _reranker.early_exit > 0 AND (weights IS NULL OR weights -> _stage > '0') THEN
        found := _said_in_slices(_stage, _reranker, _generation, _call, _outcome, size, weights, _deadline);
        said := found.said;
        _outcome.found := _outcome.found || found.read;
    ELSE
        found := _scored_by(_stage, _reranker, _generation, _call, CASE WHEN declared.reads_order
            THEN (_head(_outcome, size)).candidates ELSE _first_keys(_outcome, size) END, _deadline);
        said := _said(_outcome, _stage, _by_place(_outcome.candidates, found.keys, found.scores), weights);
        _outcome.found := _outcome.found || _found(_stage, found.keys, found.passages, found.scores);
    END IF;
    _outcome := _with_said(_outcome, said);
    _outcome.times := _outcome.times || jsonb_build_object(_stage, _milliseconds(started));
    RETURN _outcome;
END
$$;

-- A wave of a call. A stage that fails with a condition of our own leaves the order before it, and a reason:
-- variables of PL/pgSQL keep their values when the block that assigned them is rolled back, so `outcome` is what the
-- last whole stage made of it. What was set in the database meanwhile is undone. A query that could not be encoded is
-- searched for by its words. Any other error is the caller's to see, and so is a call that could search nothing at all.
-- The call comes back with the query's vectors.
CREATE OR REPLACE FUNCTION _run_wave(_reranker rerankers, INOUT _call search_call, OUT outcome search_outcome)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    deadline timestamptz := started + _reranker.timeout;
    generation generations := _generation(_reranker.name, _reranker.generation);
    scope search_scope;
    legs text[];
    stages text[];
    stage text;
    wants_tokens boolean;
    mark timestamptz;
    encoding numeric := 0;
    condition text;
BEGIN
    PERFORM _check_call(_reranker, generation, _call);
    SELECT c.legs, c.others, c.need_tokens INTO legs, stages, wants_tokens
    FROM _stages_of_call(_reranker, generation, _call) c;
    scope := _scope(_reranker, generation, _call.filter, deadline);
    outcome.times := '{}';
    BEGIN
        IF _call.keys IS NULL AND 'dense' = ANY (legs) AND _call.query_embedding IS NULL THEN
            mark := clock_timestamp();
            _call := (_with_vectors(
                generation, ARRAY[_call], true, wants_tokens, _reranker.instruction, deadline))[1];
            encoding := _milliseconds(mark);
        END IF;
        PERFORM _check_deadline(deadline, 'recall');
        outcome := _run_recall(_reranker, generation, _call, legs, scope, outcome);
        IF wants_tokens AND outcome.pool IS NOT NULL THEN
            mark := clock_timestamp();
            _call := (_with_vectors(generation, ARRAY[_call], false, true, _reranker.instruction, deadline))[1];
            encoding := encoding + _milliseconds(mark);
        END IF;
        FOREACH stage IN ARRAY stages LOOP
            EXIT WHEN outcome.pool IS NULL;
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
CREATE OR REPLACE FUNCTION _run(_reranker rerankers, _call search_call) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    deadline timestamptz := started + _reranker.timeout;
    is_diverse boolean := _is_diverse(_reranker, _generation(_reranker.name, _reranker.generation));
    asked rerankers := _reranker;
    page int := _call.top_k;
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
    wave := _run_wave(_reranker, _with_rows(_reranker, _call, is_diverse));
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
        wave := _run_wave(_reranker, _call_beyond(_reranker, wave._call, wave.outcome));
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
    RETURN QUERY SELECT * FROM _answer_of(_locked_reranker(_name, _call), _call);
END
$$;

-- What a call returns, and its part in the log and in the statistics.
CREATE OR REPLACE FUNCTION _answer_of(_reranker rerankers, _call search_call) RETURNS SETOF ranked
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    outcome search_outcome := _run(_reranker, _call);
BEGIN
    IF _reranker.log_sample > 0 THEN
        PERFORM _log_search(_reranker, _call, outcome);
    END IF;
    PERFORM _count_search(_reranker, outcome);
    RETURN QUERY SELECT * FROM _ranked(outcome, outcome.returned);
END
$$;
