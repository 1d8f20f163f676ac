-- A stage whose model is dear reads the head in slices, and stops when no document that it has not read is expected
-- to enter the first top_k. What is expected of one follows from those read: the stage's scores as a line over what the
-- earlier stages say, with normal deviations from it. pgrerank/evaluation/early_exit.py computes the same.

-- The first candidates of a pool as an outcome of their own, in their order.
CREATE OR REPLACE FUNCTION _head(_outcome search_outcome, _size int) RETURNS search_outcome
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    head search_outcome;
BEGIN
    head.candidates := ARRAY(
        SELECT c.key
        FROM unnest(_outcome.pool[:_size]) WITH ORDINALITY p (place, standing)
        JOIN unnest(_outcome.candidates) WITH ORDINALITY c (key, place) USING (place)
        ORDER BY p.standing);
    head.said := ARRAY(
        SELECT ROW(s.stage, array_agg(s.score ORDER BY s.standing), NULL,
            array_agg(s.total ORDER BY s.standing))::scored
        FROM _said_of_first(_outcome, _size) s
        GROUP BY s.stage, s.number ORDER BY s.number);
    RETURN head;
END
$$;

-- How far down slices end: a fifth more than top_k, which is the least that can be known to be right; then always a
-- quarter of that further.
CREATE OR REPLACE FUNCTION _slices(_top_k int, _size int) RETURNS SETOF int
LANGUAGE sql IMMUTABLE ROWS 5
SET search_path FROM CURRENT
AS $$
    WITH RECURSIVE slice (until) AS (
        SELECT least(_size, greatest(8, ceil(1.2 * _top_k)))::int
        UNION ALL
        SELECT least(_size, s.until + ceil(s.until / 4.0))::int FROM slice s WHERE s.until < _size)
    SELECT s.until FROM slice s
$$;

-- The scores of a head of which the first ones are read, with those expected of the rest: on the line of least squares
-- through the former, which is not let fall. A document that was read and got no score gets none.
--   spreads     the deviations of those not read from what is expected of them, which grow with the distance from
--               what was read
--   deviation   that of all scores; NULL where all are the same
--   share       what the scores here have of it
CREATE OR REPLACE FUNCTION _expected(
    _standing float8[], _read real[],
    OUT scores real[], OUT spreads float8[], OUT deviation float8, OUT share float8)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    WITH line AS (
        SELECT l.*, greatest(l.syy - l.slope * l.sxy, 0) / greatest(l.number - 2, 1) AS variance
        FROM (
            SELECT greatest(coalesce(regr_slope(d.score, d.standing), 0), 0) AS slope,
                regr_avgx(d.score, d.standing) AS x, regr_avgy(d.score, d.standing) AS y,
                regr_sxx(d.score, d.standing) AS sxx, regr_sxy(d.score, d.standing) AS sxy,
                regr_syy(d.score, d.standing) AS syy, regr_count(d.score, d.standing) AS number
            FROM unnest(_standing, _read) d (standing, score)) l
    ), document AS (
        SELECT d.place, l.variance, d.place > cardinality(_read) AS is_unread,
            CASE WHEN d.place > cardinality(_read) THEN (l.y + l.slope * (d.standing - l.x))::real
                ELSE d.score END AS score,
            1 + 1.0 / l.number + coalesce((d.standing - l.x) ^ 2 / nullif(l.sxx, 0), 0) AS doubt
        FROM line l, unnest(_standing, _read) WITH ORDINALITY d (standing, score, place)
    ), head AS (
        SELECT array_agg(d.score ORDER BY d.place) AS scores, stddev_pop(d.score::float8) AS deviation,
            array_agg(CASE WHEN d.is_unread THEN sqrt(d.variance * d.doubt) END ORDER BY d.place) AS spreads,
            coalesce(sum(d.variance) FILTER (WHERE d.is_unread), 0) / nullif(count(d.score), 0) AS missing
        FROM document d
    )
    SELECT h.scores, h.spreads, w.deviation, coalesce(h.deviation / w.deviation, 1)
    FROM head h, nullif(sqrt(h.deviation ^ 2 + h.missing), 0) w (deviation)
$$;

-- The share of a standard normal distribution that lies below z (Page, Applied Statistics 26, 1977; within 0.0002).
CREATE OR REPLACE FUNCTION _normal_share(_z float8) RETURNS float8
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 1 / (1 + exp(-least(greatest(_z * (1.5976 + 0.070566 * _z * _z), -700), 700))) $$;

-- How many of the documents not read are expected to pass the last of the first top_k, by the totals expected of them,
-- and their deviations from those.
CREATE OR REPLACE FUNCTION _expected_to_enter(_totals real[], _spreads float8[], _read int, _top_k int) RETURNS float8
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT coalesce(sum(CASE
        WHEN t.spread > 0 THEN _normal_share((t.total - l.total) / t.spread)
        WHEN t.total > l.total THEN 1 ELSE 0 END), 0)
    FROM unnest(_totals[_read + 1:], _spreads[_read + 1:]) t (total, spread), (
        SELECT CASE WHEN count(*) = _top_k THEN min(b.total) ELSE '-Infinity' END AS total
        FROM (
            SELECT r.total FROM unnest(_totals[:_read]) r (total) WHERE r.total IS NOT NULL
            ORDER BY r.total DESC LIMIT _top_k) b) l
$$;

-- How many pairs of documents, one of them among the first top_k, a stage is expected to turn round, if it knows
-- nothing of what earlier stages say.
CREATE OR REPLACE FUNCTION _expected_to_turn(_standing float8[], _top_k int, _weight float8) RETURNS float8
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT coalesce(sum(_normal_share((lower.standing - higher.standing) / (_weight * sqrt(2)))), 0)
    FROM unnest(_standing) WITH ORDINALITY higher (standing, place)
    JOIN unnest(_standing) WITH ORDINALITY lower (standing, place) ON lower.place > higher.place
    WHERE higher.place <= _top_k
$$;

-- What a stage says of the first candidates of a pool, as far as it reads them, and of which passages of theirs. It
-- reads none of more than a slice where all scores so far leave hardly a pair that it might turn round. Those read are
-- blended as if all were: by the mean and deviation that are expected of the whole head, as the first ones alone have
-- other ones.
CREATE OR REPLACE FUNCTION _said_in_slices(
    _stage text, _reranker rerankers, _generation generations, _call search_call, _outcome search_outcome, _size int,
    _weights jsonb, _deadline timestamptz, OUT said scored, OUT read scored_passages[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    head search_outcome := _head(_outcome, _size);
    slices int[] := ARRAY(SELECT s.until FROM _slices(_call.top_k, cardinality(head.candidates)) s (until));
    weight float8 := (_weights ->> _stage)::float8;
    is_overruling boolean := _reranker.blend = '{}';
    standing float8[] := _standing(head, _stage, CASE WHEN NOT is_overruling THEN _weights END);
    scores real[] := '{}';
    totals real[] := '{}';
    spreads float8[];
    expected record;
    slice text[];
    found record;
    until int;
BEGIN
    IF cardinality(slices) > 1 AND weight > 0 AND NOT is_overruling
        AND _expected_to_turn(standing, _call.top_k, weight) < _reranker.early_exit / 2 THEN
        slices := '{}';
    END IF;
    FOREACH until IN ARRAY slices LOOP
        PERFORM _check_deadline(_deadline, _stage);
        slice := head.candidates[cardinality(scores) + 1:until];
        found := _scored_by(_stage, _reranker, _generation, _call, slice, _deadline);
        scores := scores || _by_place(slice, found.keys, found.scores);
        read := read || _found(_stage, found.keys, found.passages, found.scores);
        expected := _expected(standing, scores);
        totals := CASE WHEN weight IS NULL THEN expected.scores ELSE _blended(
            head.said || (_stage, expected.scores, NULL, NULL)::scored,
            _weights || jsonb_build_object(_stage, weight * expected.share)) END;
        spreads := ARRAY(
            SELECT s.spread * coalesce(weight / expected.deviation, 1)
            FROM unnest(expected.spreads) WITH ORDINALITY s (spread, place) ORDER BY s.place);
        EXIT WHEN _expected_to_enter(totals, spreads, until, _call.top_k) < _reranker.early_exit;
    END LOOP;
    slice := head.candidates[:cardinality(scores)];
    said := (_stage, _by_place(_outcome.candidates, slice, scores), NULL,
        _by_place(_outcome.candidates, slice, totals[:cardinality(scores)]))::scored;
END
$$;

-- What earlier stages say of a head, in the terms of the blend, or by rank where nothing is blended. One that says the
-- same of all has all of them blended.
CREATE OR REPLACE FUNCTION _standing(_head search_outcome, _stage text, _weights jsonb) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    size int := cardinality(_head.candidates);
    nothing scored := (_stage, array_fill(0::real, ARRAY[size]), NULL, NULL);
BEGIN
    IF _weights IS NULL THEN
        RETURN ARRAY(SELECT -n.number FROM generate_series(1, size) n (number));
    END IF;
    RETURN _blended(_head.said || nothing, _weights);
END
$$;
