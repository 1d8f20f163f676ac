-- Groups: of documents with the same value in group_by, a search returns the best per_group. What makes top_k groups is
-- looked for in waves: each is a search of its own among the documents of groups that none before has found, and its
-- documents follow those of the waves before. So a greater top_k may ask for more waves, and never changes the order.

-- What a document's group is, as SQL over the source d. JSON null is as good as nothing there.
CREATE OR REPLACE FUNCTION _group_sql(_reranker rerankers) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target filter_target;
BEGIN
    IF _reranker.group_by IS NULL THEN
        RETURN NULL;
    END IF;
    target := _filter_target(_reranker.source, _reranker.group_by);
    RETURN format(CASE target.type WHEN 'jsonb'::regtype THEN 'nullif(%s, ''null'')' ELSE '%s' END, target.expression);
END
$$;

-- Ends what would group by a column that is not there, or of a type whose values can't be told to be equal.
CREATE OR REPLACE FUNCTION _check_group(_reranker rerankers) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target filter_target;
BEGIN
    IF _reranker.group_by IS NOT NULL THEN
        target := _filter_target(_reranker.source, _reranker.group_by);
        EXECUTE format('SELECT FROM unnest(NULL::%s[]) t (value) GROUP BY t.value', target.type);
    END IF;
EXCEPTION WHEN undefined_function THEN
    PERFORM _raise('datatype_mismatch', format('group_by: column "%s" is of type %s, whose values can''t be compared '
        'for equality', _reranker.group_by, target.type), 'Group by a number, a text, or a path into JSON.');
END
$$;

-- A query for the groups of documents, as numbers in their order, given what yields their places and values. One
-- without a value is a group of its own.
CREATE OR REPLACE FUNCTION _numbers_sql(_places text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format($sql$
        SELECT array_agg(CASE WHEN p.value IS NULL THEN p.place ELSE p.number END ORDER BY p.place)
        FROM (
            SELECT k.value, min(k.place) AS number, unnest(array_agg(k.place)) AS place FROM %s k GROUP BY k.value) p
        $sql$, _places)
$$;

-- A query for documents by their keys, which are its $1: their places there, and these columns of the source d. Of an
-- array that it doesn't know the planner expects few elements: it looks up each by the index where there is one, and
-- hashes them where there is none. ANY of the array takes an eighth less with an index, and many times as long without.
CREATE OR REPLACE FUNCTION _known_sql(_reranker rerankers, _columns text) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('SELECT k.place, %s FROM unnest((SELECT $1)) WITH ORDINALITY k (key, place) LEFT JOIN %s d ON %s '
        'OFFSET 0', _columns, _reranker.source,
        _same_key(_reranker, _key_of(_reranker, 'd'), 'k.key::' || _reranker.key_type))
$$;

-- The groups of the first candidates of a pool, in the places of all.
CREATE OR REPLACE FUNCTION _groups_of_first(_reranker rerankers, _outcome search_outcome, _size int) RETURNS int[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    candidates text[] := _outcome.candidates;
    places int[] := _outcome.pool[:_size];
    numbers int[];
    groups int[] := array_fill(NULL::int, ARRAY[cardinality(_outcome.candidates)]);
BEGIN
    EXECUTE _numbers_sql('(' || _known_sql(_reranker, _group_sql(_reranker) || ' AS value') || ')')
    INTO numbers USING ARRAY(
        SELECT candidates[p.place] FROM unnest(places) WITH ORDINALITY p (place, standing)
        ORDER BY p.standing);
    FOR standing IN 1..cardinality(places) LOOP
        groups[places[standing]] := numbers[standing];
    END LOOP;
    RETURN groups;
END
$$;

-- The outcome with no more than the best of each group in its pool, and these groups by number, unless signals have
-- read them already. Where each may have one document only, and none is chosen from these after, it is enough to look
-- as far as there are as many as whatever follows asks for.
CREATE OR REPLACE FUNCTION _best_of_groups(_reranker rerankers, _call search_call, _outcome search_outcome)
RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    all_of_it int := cardinality(_outcome.pool);
    is_diverse boolean := _reranker.diversity > 0 OR _reranker.duplicate_threshold < 1;
    enough int := CASE WHEN _reranker.per_group > 1 OR is_diverse THEN all_of_it
        ELSE greatest(_reranker.maxsim_top, _call.top_k) END;
    is_known boolean := _outcome.groups IS NOT NULL;
    size int := CASE WHEN is_known THEN all_of_it ELSE least(4 * enough, all_of_it) END;
    groups int[] := _outcome.groups;
    best int[];
BEGIN
    IF _reranker.group_by IS NULL OR _outcome.pool IS NULL THEN
        PERFORM _group_sql(_reranker);
        RETURN _outcome;
    END IF;
    LOOP
        IF NOT is_known THEN
            groups := _groups_of_first(_reranker, _outcome, size);
        END IF;
        best := ARRAY(
            SELECT g.place
            FROM (
                SELECT p.*, row_number() OVER (PARTITION BY groups[p.place] ORDER BY p.standing) AS nth
                FROM unnest(_outcome.pool[:size]) WITH ORDINALITY p (place, standing)) g
            WHERE g.nth <= _reranker.per_group ORDER BY g.standing);
        EXIT WHEN size = all_of_it OR cardinality(best) >= enough;
        size := least(4 * size, all_of_it);
    END LOOP;
    _outcome.groups := groups;
    _outcome.pool := best;
    _outcome.times := _outcome.times || jsonb_build_object('groups',
        coalesce((_outcome.times ->> 'groups')::numeric, 0) + _milliseconds(started));
    RETURN _outcome;
END
$$;

-- How many groups a pool has.
CREATE OR REPLACE FUNCTION _count_groups(_outcome search_outcome) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    groups int[] := _outcome.groups;
BEGIN
    RETURN (SELECT count(DISTINCT groups[p.place]) FROM unnest(_outcome.pool) p (place));
END
$$;

-- The outcome with its pool by groups, that of the best document first, of which the first top_k are returned. Where
-- each has one document they stand so already.
CREATE OR REPLACE FUNCTION _by_groups(_outcome search_outcome, _top_k int) RETURNS search_outcome
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _outcome.groups IS NULL THEN
        RETURN _outcome;
    ELSIF _count_groups(_outcome) = cardinality(_outcome.pool) THEN
        _outcome.returned := least(_top_k, cardinality(_outcome.pool));
    ELSE
        SELECT array_agg(g.place ORDER BY g.first, g.standing), count(*) FILTER (WHERE g.number <= _top_k)
        INTO _outcome.pool, _outcome.returned
        FROM (
            SELECT f.*, dense_rank() OVER (ORDER BY f.first) AS number
            FROM (
                SELECT p.place, p.standing, min(p.standing) OVER (PARTITION BY g.number) AS first
                FROM unnest(_outcome.pool) WITH ORDINALITY p (place, standing)
                JOIN unnest(_outcome.groups) WITH ORDINALITY g (number, place) USING (place)) f) g;
    END IF;
    RETURN _outcome;
END
$$;

-- The call with as many rows as it chooses from, at least: those are what the cross-encoder must have read.
CREATE OR REPLACE FUNCTION _with_rows(_reranker rerankers, _call search_call, _is_diverse boolean) RETURNS search_call
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _call.top_k BETWEEN 1 AND 100000 THEN
        _call.top_k := least(100000, _call.top_k::bigint * CASE WHEN _is_diverse THEN 3 ELSE 1 END
            * CASE WHEN _reranker.group_by IS NOT NULL THEN _reranker.per_group ELSE 1 END);
    END IF;
    RETURN _call;
END
$$;

-- How many documents the cross-encoder has left to read after a wave.
CREATE OR REPLACE FUNCTION _unread(_reranker rerankers, _outcome search_outcome) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT greatest(_reranker.maxsim_top - coalesce((_scored_counts(_outcome) ->> 'cross_encoder')::int, 0), 0)
$$;

-- The filter that a document's key alone passes, made of a row d of the source.
CREATE OR REPLACE FUNCTION _named_key_sql(_reranker rerankers) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('jsonb_build_object(%s)',
        string_agg(format('%L, d.%I', _filter_name(c.name), c.name), ', ' ORDER BY c.place))
    FROM unnest(_reranker.key_columns) WITH ORDINALITY c (name, place)
$$;

-- The call for the wave after one: of other documents than those of groups that are found, by the stages that have run,
-- as long as the cross-encoder has anything left to read. A language model has ordered the best already.
CREATE OR REPLACE FUNCTION _call_beyond(_reranker rerankers, _call search_call, _outcome search_outcome)
RETURNS search_call
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    found jsonb;
    alone jsonb;
BEGIN
    EXECUTE format($sql$
        SELECT coalesce(jsonb_agg(DISTINCT to_jsonb(g.value)) FILTER (WHERE g.value IS NOT NULL), '[]'),
            coalesce(jsonb_agg(g.key) FILTER (WHERE g.value IS NULL), '[]')
        FROM (SELECT %s AS key, %s AS value FROM %s d WHERE %s) g
        $sql$, _named_key_sql(_reranker), _group_sql(_reranker), _reranker.source,
        _among(_reranker, _key_of(_reranker, 'd'), '$1'))
    INTO found, alone USING _outcome.candidates;
    _call.filter := coalesce(_call.filter, '{}') || jsonb_build_object('and', coalesce(_call.filter -> 'and', '[]')
        || jsonb_build_object('not', jsonb_build_object(
            CASE WHEN _reranker.group_by IN ('and', 'or', 'not') THEN _filter_name(_reranker.group_by)
                ELSE _reranker.group_by END, jsonb_build_object('in', found)))
        || CASE WHEN alone = '[]' THEN alone ELSE jsonb_build_object('not', jsonb_build_object('or', alone)) END);
    _call.stages := ARRAY(
        SELECT s.stage FROM unnest(_outcome.said) s
        WHERE s.stage NOT IN ('signals', 'listwise') AND (s.stage <> 'cross_encoder' OR _reranker.maxsim_top > 0));
    _call."strict" := coalesce(_call."strict", false);
    RETURN _call;
END
$$;

-- What a stage said in two waves: of documents that only one knows it said nothing in the other.
CREATE OR REPLACE FUNCTION _said_in_both(_stage text, _first search_outcome, _second search_outcome) RETURNS scored
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    nothing scored := (_stage, '{}', '{}', '{}');
    one scored := coalesce((SELECT s FROM unnest(_first.said) s WHERE s.stage = _stage), nothing);
    other scored := coalesce((SELECT s FROM unnest(_second.said) s WHERE s.stage = _stage), nothing);
    size int := cardinality(_first.candidates);
    ranked int := (SELECT coalesce(max(r.rank), 0) FROM unnest(one.ranks) r (rank));
BEGIN
    RETURN (
        SELECT (_stage, array_agg(p.score ORDER BY p.place), array_agg(p.rank ORDER BY p.place),
            array_agg(p.total ORDER BY p.place))::scored
        FROM (
            SELECT k.place, s.score, s.rank, s.total
            FROM generate_subscripts(_first.candidates, 1) k (place)
            LEFT JOIN unnest(one.scores, one.ranks, one.totals) WITH ORDINALITY s (score, rank, total, place)
                USING (place)
            UNION ALL
            SELECT size + k.place, s.score, ranked + s.rank, s.total
            FROM generate_subscripts(_second.candidates, 1) k (place)
            LEFT JOIN unnest(other.scores, other.ranks, other.totals) WITH ORDINALITY s (score, rank, total, place)
                USING (place)) p);
END
$$;

-- The outcome of waves and of the one after them.
CREATE OR REPLACE FUNCTION _followed_by(_first search_outcome, _second search_outcome) RETURNS search_outcome
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    joined search_outcome := _first;
    size int := cardinality(_first.candidates);
BEGIN
    joined.reason := coalesce(_first.reason, _second.reason);
    joined.times := (
        SELECT jsonb_object_agg(t.key, t.sum)
        FROM (
            SELECT t.key, sum(t.value::numeric)
            FROM (SELECT * FROM jsonb_each(_first.times) UNION ALL SELECT * FROM jsonb_each(_second.times)) t
            GROUP BY t.key) t);
    IF _second.pool IS NOT NULL THEN
        joined.said := ARRAY(
            SELECT _said_in_both(s.stage, _first, _second)
            FROM unnest(_first.said || _second.said) WITH ORDINALITY s (stage, scores, ranks, totals, number)
            GROUP BY s.stage ORDER BY min(s.number));
        joined.candidates := _first.candidates || _second.candidates;
        joined.pool := _first.pool || ARRAY(
            SELECT size + p.place FROM unnest(_second.pool) WITH ORDINALITY p (place, standing) ORDER BY p.standing);
        joined.groups := _first.groups || ARRAY(
            SELECT g.number + m.greatest
            FROM unnest(_second.groups) WITH ORDINALITY g (number, place), (
                SELECT max(f.number) AS greatest FROM unnest(_first.groups) f (number)) m
            ORDER BY g.place)::int[];
    END IF;
    RETURN joined;
END
$$;
