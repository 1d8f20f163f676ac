-- Recall makes the pool: of what its legs find, or of the caller's own keys. Each leg's score is then known of the
-- whole pool, so that scores can be blended.

-- Where a search looks: what its filter says as SQL, and how many documents the planner expects to match it under the
-- caller's rights, of how many.
CREATE OR REPLACE FUNCTION _scope(_reranker rerankers, _predicate text, _deadline timestamptz) RETURNS search_scope
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    scope search_scope;
    plan json;
BEGIN
    scope.predicate := _predicate;
    scope.deadline := _deadline;
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM %s d WHERE %s', _reranker.source, _predicate) INTO plan;
    scope.matching := (plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
    scope.documents := greatest(scope.matching, (
        SELECT sum(c.reltuples) FROM pg_class c
        WHERE c.relkind = 'r' AND (c.oid = _reranker.source
            OR c.oid IN (SELECT t.relid FROM pg_partition_tree(_reranker.source) t))));
    RETURN scope;
END
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
            SELECT u.key, min(u.place) AS place, (array_agg(u.score ORDER BY u.place))[1]::real AS score
            FROM unnest($1::%1$s[], $2) WITH ORDINALITY u (key, score, place) GROUP BY u.key) k
        JOIN %2$s d ON d.%3$I = k.key
        WHERE %4$s
        $sql$, _reranker.key_type, _reranker.source, _reranker.key_column, _predicate)
    INTO keys, scores USING _call.keys, _call.key_scores;
END
$$;

-- What is said of the caller's own candidates: the lexical score where that leg was wanted; then, as dense score, the
-- caller's, or else that by the query's embedding where there is one. The ranks are the caller's.
CREATE OR REPLACE FUNCTION _recall_given(
    _reranker rerankers, _generation generations, _call search_call, _legs text[], _predicate text) RETURNS scored[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    given record := _given(_reranker, _call, _predicate);
    scored record;
    recalled scored[];
    leg text;
BEGIN
    FOREACH leg IN ARRAY _legs LOOP
        scored := given;
        IF leg <> 'dense' OR (_call.key_scores IS NULL AND _call.query_embedding IS NOT NULL) THEN
            scored := _scored_by(leg, _reranker, _generation, _call, given.keys, NULL);
        END IF;
        recalled := ARRAY(
            SELECT (leg, k.key, s.score, k.place)::scored
            FROM unnest(given.keys) WITH ORDINALITY k (key, place)
            LEFT JOIN unnest(scored.keys, scored.scores) s (key, score) ON s.key = k.key) || recalled;
    END LOOP;
    RETURN recalled;
END
$$;

-- What the legs of recall say of all that one of them found, the milliseconds that each took, and what is missing, if
-- one had no time to look everywhere. Where both rank, the second's ranks are those of both: by their blended scores
-- or, where the blend gives them no weights, by reciprocal ranks.
CREATE OR REPLACE FUNCTION _recall(
    _reranker rerankers, _generation generations, _call search_call, _legs text[], _scope search_scope,
    OUT scores scored[], OUT times jsonb, OUT shortage text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    weights jsonb := _weights_of(_reranker.blend, _legs);
    started timestamptz;
    leg text;
    one record;
    found scored[];
    said scored[];
BEGIN
    times := '{}';
    FOREACH leg IN ARRAY _legs LOOP
        started := clock_timestamp();
        EXECUTE format('SELECT r.* FROM %I($1, $2, $3, $4) r', '_recall_' || leg)
        INTO one USING _reranker, _generation, _call, _scope;
        shortage := coalesce(shortage, one.shortage);
        found := found || ARRAY(
            SELECT (leg, o.key, o.score, NULL)::scored FROM unnest(one.keys, one.scores) o (key, score));
        times := times || jsonb_build_object(leg, _milliseconds(started));
    END LOOP;
    FOREACH leg IN ARRAY _legs LOOP
        started := clock_timestamp();
        one := _completed(leg, _reranker, _generation, _call, found);
        said := _said(leg, one.keys, one.scores, scores, CASE WHEN scores IS NOT NULL THEN weights END);
        IF scores IS NOT NULL AND weights IS NULL THEN
            said := _by_reciprocal_rank(scores, said);
        END IF;
        scores := scores || said;
        times := times || jsonb_build_object(leg, (times ->> leg)::numeric + _milliseconds(started));
    END LOOP;
END
$$;

-- The weights that a blend gives to some stages; NULL where it gives them none.
CREATE OR REPLACE FUNCTION _weights_of(_blend jsonb, _stages text[]) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT jsonb_object_agg(w.key, w.value) FROM jsonb_each(_blend) w WHERE w.key = ANY (_stages) AND w.value > '0'
$$;

-- A leg's scores of all that was found, by itself or by the other leg.
CREATE OR REPLACE FUNCTION _completed(
    _leg text, _reranker rerankers, _generation generations, _call search_call, _found scored[],
    OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    missing text[];
    rest record;
BEGIN
    SELECT array_agg(f.key), array_agg(f.score) INTO keys, scores FROM unnest(_found) f WHERE f.stage = _leg;
    missing := ARRAY(
        SELECT f.key FROM unnest(_found) f WHERE f.stage <> _leg
        EXCEPT SELECT f.key FROM unnest(_found) f WHERE f.stage = _leg);
    IF missing <> '{}' THEN
        rest := _scored_by(_leg, _reranker, _generation, _call, missing, NULL);
        keys := keys || rest.keys;
        scores := scores || rest.scores;
    END IF;
END
$$;

-- What the second leg said, ranked by the sum of reciprocal ranks in both (Cormack, Clarke and Büttcher, SIGIR 2009;
-- k 60).
CREATE OR REPLACE FUNCTION _by_reciprocal_rank(_first scored[], _second scored[]) RETURNS scored[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg((s.stage, s.key, s.score, s.fused)::scored)
    FROM (
        SELECT s.stage, s.key, s.score, row_number() OVER (
            ORDER BY 1.0 / (60 + s.rank) + coalesce(1.0 / (60 + f.rank), 0) DESC, s.key) AS fused
        FROM unnest(_second) s LEFT JOIN unnest(_first) f ON f.key = s.key) s
$$;
