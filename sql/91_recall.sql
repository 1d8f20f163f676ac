-- Recall makes the pool: of what its legs find, or of the caller's own keys. Each leg's score is then known of the
-- whole pool, so that scores can be blended.

-- Where a search looks: what its filter says as SQL, and how many documents the planner expects to match it under the
-- caller's rights, of how many: of its tenant's where that has an index of its own, else of all.
CREATE OR REPLACE FUNCTION _scope(
    _reranker rerankers, _generation generations, _filter jsonb, _deadline timestamptz) RETURNS search_scope
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    scope search_scope;
    tenant text := _tenant_of(_reranker, _generation, _filter);
    plan jsonb;
BEGIN
    scope.predicate := _filter_sql(_reranker.source, _filter);
    scope.side_predicate := coalesce(
        _tenant_predicate(_generation, tenant, _filter_sql(_reranker.source, _filter - _generation.tenant_column)),
        scope.predicate);
    scope.deadline := _deadline;
    EXECUTE format('EXPLAIN (%s FORMAT JSON) SELECT FROM %s d WHERE %s',
        CASE WHEN _generation.partitioned THEN 'VERBOSE,' END, _reranker.source, scope.predicate)
    INTO plan;
    IF _generation.partitioned THEN
        scope.partitions := _partitions_in(_reranker, plan);
        scope.side_predicate := CASE WHEN _reranker.embedding_column IS NULL
            THEN _within_partitions(scope) ELSE scope.predicate END;
    END IF;
    scope.matching := (plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
    IF tenant IS NOT NULL THEN
        scope.documents := _indexed_of_tenant(_generation, tenant);
    END IF;
    scope.documents := greatest(scope.matching, coalesce(scope.documents, (
        SELECT sum(_estimated_rows(p.leaf)) FROM partitions p
        WHERE p.reranker = _reranker.name AND p.number = ANY (scope.partitions)), _estimated_rows(_reranker.source)));
    RETURN scope;
END
$$;

-- A filter's predicate for a side table s beside the source, which reads the partitions that it keeps alone.
CREATE OR REPLACE FUNCTION _within_partitions(_scope search_scope) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _scope.partitions IS NOT NULL
        THEN format('s.partition = ANY (%L::int[]) AND ', _scope.partitions) ELSE '' END || _scope.predicate
$$;

-- The caller's own candidates in the caller's order: those that exist, are visible and pass the filter.
CREATE OR REPLACE FUNCTION _given(
    _reranker rerankers, _call search_call, _predicate text, OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format($sql$
        SELECT array_agg(k.key::text ORDER BY k.place), array_agg(k.score ORDER BY k.place)
        FROM (
            SELECT u.key::%s AS key, min(u.place) AS place, (array_agg(u.score ORDER BY u.place))[1]::real AS score
            FROM unnest($1, $2) WITH ORDINALITY u (key, score, place) GROUP BY 1) k
        JOIN %s d ON %s
        WHERE %s
        $sql$, _reranker.key_type, _reranker.source, _same_key(_reranker, _key_of(_reranker, 'd'), 'k.key'), _predicate)
    INTO keys, scores USING _call.keys, _call.key_scores;
END
$$;

-- The outcome of recall over the caller's own candidates, in their order: the lexical score where that leg was wanted;
-- as dense score the caller's, or else that by the query's embedding where there is one. The ranks are the caller's.
CREATE OR REPLACE FUNCTION _recall_given(
    _reranker rerankers, _generation generations, _call search_call, _legs text[], _scope search_scope,
    _outcome search_outcome) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    given record := _given(_reranker, _call, _scope.predicate);
    started timestamptz := clock_timestamp();
    scored record;
    scores real[];
    leg text;
BEGIN
    PERFORM _check_found_keys(_reranker, given.keys);
    _outcome.candidates := given.keys;
    _outcome.pool := _all_places(given.keys);
    FOREACH leg IN ARRAY _legs LOOP
        EXIT WHEN given.keys IS NULL;
        scored := given;
        IF leg <> 'dense' OR (_call.key_scores IS NULL AND _call.query_embedding IS NOT NULL) THEN
            scored := _scored_by(leg, _reranker, _generation, _call, given.keys, NULL);
            _outcome.found := _outcome.found || _found(leg, scored.keys, scored.passages, scored.scores);
        END IF;
        scores := _by_place(given.keys, scored.keys, scored.scores);
        _outcome.said := (leg, scores, _outcome.pool, scores)::scored || _outcome.said;
    END LOOP;
    _outcome.times := _outcome.times || jsonb_build_object(_legs[1], _milliseconds(started));
    RETURN _outcome;
END
$$;

-- What the legs of recall find, each with its scores in the places of the candidates so far. A leg that had no time to
-- look everywhere leaves a reason.
CREATE OR REPLACE FUNCTION _find(
    _reranker rerankers, _generation generations, _call search_call, _legs text[], _scope search_scope,
    INOUT _outcome search_outcome, OUT by_leg scored[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz;
    leg text;
    one record;
BEGIN
    FOREACH leg IN ARRAY _legs LOOP
        started := clock_timestamp();
        EXECUTE format('SELECT r.* FROM %I($1, $2, $3, $4) r', '_recall_' || leg)
        INTO one USING _reranker, _generation, _call, _scope;
        _outcome.reason := coalesce(_outcome.reason, one.shortage);
        PERFORM _check_found_keys(_reranker, one.keys, one.passages);
        _outcome.candidates := _united(_outcome.candidates, _distinct(one.keys, one.passages));
        _outcome.found := _outcome.found || _found(leg, one.keys, one.passages, one.scores);
        by_leg := by_leg || (leg, _by_place(_outcome.candidates, one.keys, one.scores), NULL, NULL)::scored;
        _outcome.times := _outcome.times || jsonb_build_object(leg, _milliseconds(started));
    END LOOP;
    _outcome.pool := _all_places(_outcome.candidates);
END
$$;

-- The outcome of recall: what one of the legs found, as all of them score and rank it. Where both rank, the second's
-- ranks are those of both: by their blended scores or, where the blend gives them no weights, by reciprocal ranks. What
-- a leg says of the others' documents is asked for unless it is known, by leg.
CREATE OR REPLACE FUNCTION _recalled(
    _reranker rerankers, _generation generations, _call search_call, _outcome search_outcome, _found scored[],
    _rest scored_passages[] DEFAULT NULL) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    weights jsonb := _weights_of(_reranker.blend, ARRAY(SELECT f.stage FROM unnest(_found) f));
    started timestamptz;
    stage text;
    rest record;
BEGIN
    FOR leg IN 1..cardinality(_found) LOOP
        EXIT WHEN _outcome.pool IS NULL;
        started := clock_timestamp();
        stage := _found[leg].stage;
        IF _rest IS NULL THEN
            rest := _missing(_found[leg], _reranker, _generation, _call, _outcome.candidates);
        ELSE
            rest := _rest[leg];
        END IF;
        _outcome.found := _outcome.found || _found(stage, rest.keys, rest.passages, rest.scores);
        _outcome := _with_said(_outcome, _said(_outcome, stage,
            _completed(_found[leg].scores, _outcome.candidates, rest.keys, rest.scores),
            CASE WHEN leg > 1 THEN weights END), leg > 1 AND weights IS NULL);
        _outcome.times := _outcome.times || jsonb_build_object(
            stage, (_outcome.times ->> stage)::numeric + _milliseconds(started));
    END LOOP;
    RETURN _outcome;
END
$$;

CREATE OR REPLACE FUNCTION _recall(
    _reranker rerankers, _generation generations, _call search_call, _legs text[], _scope search_scope,
    _outcome search_outcome) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    one record := _find(_reranker, _generation, _call, _legs, _scope, _outcome);
BEGIN
    RETURN _recalled(_reranker, _generation, _call, one._outcome, one.by_leg);
END
$$;

-- The places of candidates as they stand; NULL where there are none.
CREATE OR REPLACE FUNCTION _all_places(_candidates text[]) RETURNS int[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT array_agg(p.place) FROM generate_subscripts(_candidates, 1) p (place) $$;

-- The first keys, and after them those of the second that aren't among them.
CREATE OR REPLACE FUNCTION _united(_first text[], _second text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _first IS NULL OR _second IS NULL THEN coalesce(_first, _second)
        ELSE _first || ARRAY(
            SELECT s.key FROM unnest(_second) WITH ORDINALITY s (key, place)
            WHERE NOT EXISTS (SELECT FROM unnest(_first) f (key) WHERE f.key = s.key) ORDER BY s.place) END
$$;

-- The weights that a blend gives to some stages; NULL where it gives them none.
CREATE OR REPLACE FUNCTION _weights_of(_blend jsonb, _stages text[]) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT jsonb_object_agg(w.key, w.value) FROM jsonb_each(_blend) w WHERE w.key = ANY (_stages) AND w.value > '0'
$$;

-- The keys of passages, each once, as they come. Where all are the first of their documents, no two are of the same.
CREATE OR REPLACE FUNCTION _distinct(_keys text[], _passages int[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN (1 = ALL (_passages)) IS DISTINCT FROM false OR _keys IS NULL THEN _keys ELSE ARRAY(
        SELECT k.key FROM unnest(_keys) WITH ORDINALITY k (key, place) GROUP BY k.key ORDER BY min(k.place)) END
$$;

-- The candidates that a leg has not scored.
CREATE OR REPLACE FUNCTION _unscored(_found scored, _candidates text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT ARRAY(SELECT c.key FROM unnest(_candidates, _found.scores) c (key, score) WHERE c.score IS NULL) $$;

-- What a leg says of the candidates that it has not found, but the other one has.
CREATE OR REPLACE FUNCTION _missing(
    _found scored, _reranker rerankers, _generation generations, _call search_call, _candidates text[],
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    missing text[] := _unscored(_found, _candidates);
BEGIN
    IF missing <> '{}' THEN
        SELECT s.keys, s.scores, s.passages INTO keys, scores, passages
        FROM _scored_by(_found.stage, _reranker, _generation, _call, missing, NULL) s;
    END IF;
END
$$;

-- The scores of all candidates, given those of the first of them, and of others by their keys.
CREATE OR REPLACE FUNCTION _completed(_first real[], _candidates text[], _keys text[], _scores real[]) RETURNS real[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _keys IS NULL AND cardinality(_first) = cardinality(_candidates) THEN _first
        ELSE _by_place(_candidates, _candidates[:coalesce(cardinality(_first), 0)] || _keys, _first || _scores) END
$$;
