-- Signals: what columns of the source say of a document, whatever the query: how new it is, how popular, whether it is
-- pinned. signals => '{"published": {"decay": "90 days", "weight": 0.2}, "votes": {"log": true, "weight": 0.1},
-- "pinned": {"equals": true, "boost": 1}}'. Each is one or a list of them; "boosts" are conditions on any columns.

CREATE OR REPLACE FUNCTION _bad_signal(_name text, _word text, _value jsonb, _wanted text) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _raise('invalid_parameter_value', format('signals: "%s" of "%s" is %s, expected %s',
        _word, _name, coalesce(_value::text, 'missing'), _wanted))
$$;

-- Ends a signal that has other words than these.
CREATE OR REPLACE FUNCTION _check_signal_words(_name text, _signal jsonb, _words text[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _signal - _words <> '{}' THEN
        PERFORM _raise('invalid_parameter_value', format('signals: "%s" has "%s", which is not among its words: %s',
            _name, (SELECT min(w.word) FROM jsonb_object_keys(_signal - _words) w (word)),
            array_to_string(_words, ', ')),
            'A signal has a weight and decay (shape, origin, offset), log or sqrt; or a boost and its condition.');
    END IF;
END
$$;

-- What a word of a signal says, as a number: seconds of an interval, and since 1970 of a time.
CREATE OR REPLACE FUNCTION _signal_number(
    _name text, _signal jsonb, _word text, _type regtype, _preset float8, _lowest float8, _wanted text) RETURNS float8
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    said jsonb := _signal -> _word;
    is_number boolean := _type = 'float8'::regtype;
    number float8;
BEGIN
    IF said IS NULL AND _preset IS NOT NULL THEN
        RETURN _preset;
    ELSIF jsonb_typeof(said) = (CASE WHEN is_number THEN 'number' ELSE 'string' END) THEN
        number := CASE WHEN is_number THEN (said #>> '{}')::float8
            WHEN _type = 'interval'::regtype THEN date_part('epoch', (said #>> '{}')::interval)
            ELSE date_part('epoch', (said #>> '{}')::timestamptz) END;
    END IF;
    IF (number BETWEEN _lowest AND CASE WHEN _lowest < 0 THEN -_lowest ELSE 1e15 END) IS NOT TRUE THEN
        PERFORM _bad_signal(_name, _word, said, _wanted);
    END IF;
    RETURN number;
EXCEPTION WHEN data_exception THEN
    PERFORM _bad_signal(_name, _word, said, _wanted);
END
$$;

-- A column's value, or what stands at a path, as a number; of a time the seconds since 1970. JSON of another kind is
-- none: what is no time of ISO 8601 there, too.
CREATE OR REPLACE FUNCTION _signal_column(_target filter_target, _is_time boolean) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    is_json boolean := _target.type = 'jsonb'::regtype;
BEGIN
    IF _is_time AND is_json THEN
        RETURN format($sql$date_part('epoch', (jsonb_path_query_first_tz(to_jsonb(regexp_replace(regexp_replace(
            %s #>> '{}', '\.\d+', ''), 'Z$', '+00')), '$.datetime()', '{}', true) #>> '{}')::timestamptz)$sql$,
            _target.expression);
    ELSIF is_json THEN
        RETURN format($sql$CASE WHEN jsonb_typeof(%1$s) = 'number' THEN (%1$s)::float8 END$sql$, _target.expression);
    ELSIF _is_time AND _target.type IN ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype) THEN
        RETURN format('date_part(''epoch'', %s::timestamptz)', _target.expression);
    ELSIF NOT _is_time AND _category_of(_target.type) = 'N' THEN
        RETURN _target.expression || '::float8';
    END IF;
    PERFORM _raise('datatype_mismatch', format('signals: column "%s" is of type %s, expected %s',
        _target."column", _target.type, CASE WHEN _is_time THEN 'a date or a timestamp, as its decay is an interval'
            ELSE 'a number' END),
        CASE WHEN NOT _is_time THEN 'A date or timestamp has a decay such as "90 days"; anything else can have a boost.'
        END);
END
$$;

-- How near a value is to the origin: 1 there and up to the offset, a half at a distance of decay beyond that.
CREATE OR REPLACE FUNCTION _decay_sql(_name text, _signal jsonb, _column text, _is_time boolean) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    length regtype := CASE WHEN _is_time THEN 'interval' ELSE 'float8' END;
    lengths text := CASE WHEN _is_time THEN 'an interval such as "90 days"' ELSE 'a number' END;
    scale float8 := _signal_number(_name, _signal, 'decay', length, NULL, 1e-9, lengths || ' above 0');
    "offset" float8 := _signal_number(_name, _signal, 'offset', length, 0, 0, lengths || ' of 0 or more');
    origin float8 := CASE WHEN _is_time
        THEN _signal_number(_name, _signal, 'origin', 'timestamptz', date_part('epoch', now()), -1e15, 'a time')
        ELSE _signal_number(_name, _signal, 'origin', 'float8', NULL, -1e100, 'a number') END;
    distance text := format('least(greatest(abs(%s - %L::float8) - %L::float8, 0) / %L::float8, 100)',
        _column, origin, "offset", scale);
    nearness text := CASE coalesce(_signal ->> 'shape', 'exponential')
        WHEN 'exponential' THEN format('power(0.5, %s)', distance)
        WHEN 'linear' THEN format('greatest(1 - %s / 2, 0)', distance)
        WHEN 'gauss' THEN format('power(0.5, least((%s) ^ 2, 100))', distance) END;
BEGIN
    IF nearness IS NULL THEN
        PERFORM _bad_signal(_name, 'shape', _signal -> 'shape', 'exponential, linear or gauss');
    END IF;
    RETURN format('CASE WHEN %s IS NOT NULL THEN %s END', _column, nearness);
END
$$;

-- A signal as SQL over the source d.
CREATE OR REPLACE FUNCTION _signal_sql(_source regclass, _name text, _signal jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target filter_target := _filter_target(_source, _name);
    is_time boolean := coalesce(jsonb_typeof(_signal -> 'decay') = 'string', false);
    "column" text := _signal_column(target, is_time);
    word text;
BEGIN
    IF _signal ? 'decay' THEN
        PERFORM _check_signal_words(_name, _signal, '{weight,decay,shape,origin,offset}');
        RETURN _decay_sql(_name, _signal, "column", is_time);
    END IF;
    PERFORM _check_signal_words(_name, _signal, CASE WHEN _signal ? 'sqrt' THEN '{weight,sqrt}'::text[]
        ELSE '{weight,log}' END);
    FOREACH word IN ARRAY '{log,sqrt}'::text[] LOOP
        IF _signal -> word <> 'true' THEN
            PERFORM _bad_signal(_name, word, _signal -> word, 'true, or to be left out');
        ELSIF _signal ? word THEN
            RETURN format('sign(%1$s) * %2$s', "column", format(CASE word WHEN 'log' THEN 'ln(1 + abs(%s))'
                ELSE 'sqrt(abs(%s))' END, "column"));
        END IF;
    END LOOP;
    RETURN "column";
END
$$;

-- The condition of a boost: operators of the filter, of which = may be written equals; or, in boosts, a whole filter.
CREATE OR REPLACE FUNCTION _boost_sql(_source regclass, _name text, _signal jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    condition jsonb := _signal - 'boost';
BEGIN
    IF _name = 'boosts' THEN
        PERFORM _check_signal_words(_name, _signal, '{boost,when}');
        IF jsonb_typeof(_signal -> 'when') IS DISTINCT FROM 'object' THEN
            PERFORM _bad_signal(_name, 'when', _signal -> 'when', 'a filter such as {"pinned": true}');
        END IF;
        RETURN _filter_sql(_source, _signal -> 'when');
    ELSIF condition ? 'equals' THEN
        condition := condition - 'equals' || jsonb_build_object('=', condition -> 'equals');
    END IF;
    IF condition = '{}' THEN
        PERFORM _raise('invalid_parameter_value', format('signals: the boost of "%s" has no condition', _name),
            'Such as "equals": true, or another operator of filters: ' || _filter_operators());
    END IF;
    RETURN _filter_entry(_source, _name, condition);
END
$$;

-- Signals, each as SQL over the source d: a value that has a weight, or a condition whose weight is a boost.
CREATE OR REPLACE FUNCTION _signals_sql(_source regclass, _signals jsonb)
RETURNS TABLE (place bigint, expression text, is_boost boolean, weight float8)
LANGUAGE plpgsql STABLE ROWS 5
SET search_path FROM CURRENT
AS $$
DECLARE
    name text;
    signal jsonb;
BEGIN
    FOR place, name, signal IN
        SELECT row_number() OVER (), s.key, e.value
        FROM jsonb_each(_signals) s, jsonb_array_elements(
            CASE jsonb_typeof(s.value) WHEN 'array' THEN s.value ELSE jsonb_build_array(s.value) END) e
    LOOP
        IF jsonb_typeof(signal) <> 'object' THEN
            PERFORM _raise('invalid_parameter_value', format('signals: "%s" is %s, expected an object', name, signal),
                'Such as {"decay": "90 days", "weight": 0.2} or {"equals": true, "boost": 1}.');
        END IF;
        is_boost := name = 'boosts' OR signal ? 'boost';
        expression := CASE WHEN is_boost THEN _boost_sql(_source, name, signal)
            ELSE _signal_sql(_source, name, signal) END;
        weight := _signal_number(name, signal, CASE WHEN is_boost THEN 'boost' ELSE 'weight' END, 'float8', NULL,
            -1000, 'a number from -1000 to 1000');
        RETURN NEXT;
    END LOOP;
END
$$;

-- What signals add to the score of each candidate, in their places; NULL where none has a weight. Of a value it is how
-- far it lies from the mean of all candidates, in units of its standard deviation there, as stages are blended; of a
-- condition that holds, the boost. In type real equal values deviate by 0; what is beyond its range is no value. The
-- groups of candidates, where there are to be any, are read with them.
CREATE OR REPLACE FUNCTION _signals_of(
    _reranker rerankers, _candidates text[], OUT scores real[], OUT groups int[])
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    group_sql text := _group_sql(_reranker);
    known text;
    numbers text;
    parts text;
    moments text;
BEGIN
    SELECT string_agg(format('%s AS v%s', s.expression, s.place), ', '),
        string_agg(format(CASE WHEN s.is_boost THEN 'CASE WHEN s.v%1$s THEN 1 ELSE 0 END AS v%1$s'
            ELSE 'CASE WHEN abs(s.v%1$s) < 1e-30 THEN 0 WHEN abs(s.v%1$s) < 1e37 THEN s.v%1$s::real END AS v%1$s' END,
            s.place), ', '),
        string_agg(format(CASE WHEN s.is_boost THEN '%2$L::float8 * n.v%1$s'
            ELSE 'coalesce(%2$L::float8 * (n.v%1$s - m.mean%1$s) / m.deviation%1$s, 0)' END, s.place, s.weight), ' + '),
        coalesce(string_agg(CASE WHEN NOT s.is_boost THEN
            format('avg(n.v%1$s) AS mean%1$s, nullif(stddev_pop(n.v%1$s), 0) AS deviation%1$s', s.place) END, ', '),
            'count(*)')
    INTO known, numbers, parts, moments
    FROM _signals_sql(_reranker.source, _reranker.signals) s WHERE s.weight <> 0;
    IF parts IS NOT NULL THEN
        known := _known_sql(_reranker, format('%s, %s AS value', known, coalesce(group_sql, 'NULL::int')));
        EXECUTE format('WITH n AS MATERIALIZED (SELECT s.place, s.value, %s FROM (%s) s) ', numbers, known)
            || format('SELECT (SELECT array_agg((%s)::real ORDER BY n.place) FROM n, (SELECT %s FROM n) m), ',
                parts, moments)
            || CASE WHEN group_sql IS NULL THEN 'NULL' ELSE format('(%s)', _numbers_sql('n')) END
        INTO scores, groups USING _candidates;
    END IF;
END
$$;

-- What each signal alone would add with a weight of 1 to the candidates of a pool, in its order: an object each.
CREATE OR REPLACE FUNCTION _signal_parts(_reranker rerankers, _outcome search_outcome) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    parts jsonb := '[]';
    one record;
    scores real[];
BEGIN
    FOR one IN
        SELECT s.key AS name, e.number, e.value AS signal,
            CASE WHEN s.key = 'boosts' OR e.value ? 'boost' THEN 'boost' ELSE 'weight' END AS word
        FROM jsonb_each(_reranker.signals) s, jsonb_array_elements(
            CASE jsonb_typeof(s.value) WHEN 'array' THEN s.value ELSE jsonb_build_array(s.value) END)
            WITH ORDINALITY e (value, number)
    LOOP
        _reranker.signals := jsonb_build_object(one.name, one.signal || jsonb_build_object(one.word, 1));
        scores := (_signals_of(_reranker, _outcome.candidates)).scores;
        parts := parts || jsonb_build_object('name', one.name, 'number', one.number,
            'weight', one.signal -> one.word, 'scores', ARRAY(
                SELECT scores[p.place] FROM unnest(_outcome.pool) WITH ORDINALITY p (place, standing)
                ORDER BY p.standing));
    END LOOP;
    RETURN parts;
END
$$;

-- The outcome of recall, ranked by what it says and by signals. They count beside the blended scores of its legs; where
-- those aren't blended, for the candidates are the caller's own or were fused by reciprocal ranks, beside their ranks.
CREATE OR REPLACE FUNCTION _with_signals(
    _reranker rerankers, _call search_call, _legs text[], _outcome search_outcome) RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    signals scored := ('signals', NULL, NULL, NULL);
    weights jsonb := _weights_of(_reranker.blend, _legs);
    before scored[] := _outcome.said;
BEGIN
    IF _outcome.pool IS NULL THEN
        PERFORM FROM _signals_sql(_reranker.source, _reranker.signals);
    END IF;
    IF _outcome.pool IS NULL OR _reranker.signals = '{}' THEN
        RETURN _outcome;
    END IF;
    SELECT s.scores, s.groups INTO signals.scores, _outcome.groups FROM _signals_of(_reranker, _outcome.candidates) s;
    IF signals.scores IS NULL THEN
        RETURN _outcome;
    ELSIF _call.keys IS NOT NULL OR (weights IS NULL AND cardinality(_legs) > 1) THEN
        before := ARRAY[('recall', ARRAY(
            SELECT 1.0 / (60 + p.standing) FROM unnest(_outcome.pool) WITH ORDINALITY p (place, standing)
            ORDER BY p.place), NULL, NULL)::scored];
        weights := NULL;
    END IF;
    weights := _weights_beside_signals(before || signals, before[cardinality(before)].stage, weights);
    signals.totals := _blended(before || signals, weights);
    _outcome := _with_said(_outcome, signals);
    _outcome.times := _outcome.times || jsonb_build_object('signals', _milliseconds(started));
    RETURN _outcome;
END
$$;

-- The weights by which a stage's totals are blended, given what is said before it. Where that has signals, the weights
-- of stages add up to 1, so that signals count as much beside few stages as beside many; a stage that overrules those
-- before, or has none beside it with a weight, has all of it.
CREATE OR REPLACE FUNCTION _weights_beside_signals(_said scored[], _stage text, _weights jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN NOT 'signals' = ANY (l.stages) THEN _weights
        ELSE jsonb_build_object('signals', 1) || coalesce((
            SELECT jsonb_object_agg(w.key, w.value::float8 / w.sum) FILTER (WHERE w.sum > 0)
            FROM (
                SELECT w.key, w.value, sum(w.value::float8) OVER () AS sum FROM jsonb_each(_weights) w
                WHERE w.key = _stage OR w.key = ANY (l.stages)) w), jsonb_build_object(_stage, 1)) END
    FROM (SELECT array_agg(s.stage) AS stages FROM unnest(_said) s) l
$$;
