-- Diversity: documents are chosen one by one, each by its own relevance less its likeness to those chosen before
-- (maximal marginal relevance: Carbonell and Goldstein, SIGIR 1998), and near-duplicates of those are left out.

-- Whether documents are to be chosen so; an error where there are neither embeddings to tell likeness by nor, with the
-- native kernel, token vectors.
CREATE OR REPLACE FUNCTION _is_diverse(_reranker rerankers, _generation generations) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _reranker.diversity = 0 AND _reranker.duplicate_threshold = 1 THEN
        RETURN false;
    ELSIF NOT _has_embeddings(_reranker, _generation)
        AND (_generation.late_interaction_model IS NULL OR NOT has_native_kernel()) THEN
        PERFORM _raise('invalid_parameter_value', format('reranker "%s" has no embeddings, by which diversity and '
            'duplicate_threshold tell how much alike documents are', _reranker.name),
            'Name an embedding_model by pgrerank.alter_reranker, or a late_interaction_model where the server has the '
            'native kernel; or leave them at 0 and 1.');
    END IF;
    RETURN true;
END
$$;

-- Whether a generation's documents have embeddings, of a model's or the user's own.
CREATE OR REPLACE FUNCTION _has_embeddings(_reranker rerankers, _generation generations) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT _reranker.embedding_column IS NOT NULL OR _generation.embedding_model IS NOT NULL $$;

-- How relevant documents are by the totals that they were ranked by: 1 for the first of them, 0 for the hundredth, in
-- proportion between, never more than one before. By their standing where they have no totals.
CREATE OR REPLACE FUNCTION _relevance(_outcome search_outcome, _places int[]) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    one scored;
    said real[];
    totals float8[];
    last float8;
BEGIN
    FOREACH one IN ARRAY coalesce(_outcome.said, '{}') LOOP
        said := one.totals;
        totals := ARRAY(
            SELECT coalesce(said[p.place], p.total)
            FROM (SELECT unnest(_places) AS place, unnest(totals) AS total) p);
    END LOOP;
    totals := ARRAY(
        SELECT min(p.total) OVER (ORDER BY p.standing) FROM unnest(totals) WITH ORDINALITY p (total, standing));
    last := coalesce(totals[100], totals[cardinality(totals)]);
    RETURN ARRAY(
        SELECT coalesce(1 - (totals[1] - p.total) / nullif(totals[1] - last, 0),
            CASE WHEN totals[1] IS NULL THEN 1 - p.standing / 100.0 ELSE 1 END)
        FROM (SELECT generate_subscripts(_places, 1) AS standing, unnest(totals) AS total) p);
END
$$;

-- Documents by their places, with the number of the best passage of each: there is no need to look for it where no
-- stage has told of any but the first ones.
CREATE OR REPLACE FUNCTION _best_of_places(_outcome search_outcome, _places int[], OUT keys text[], OUT passages int[])
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    candidates text[] := _outcome.candidates;
BEGIN
    keys := ARRAY(
        SELECT candidates[p.place] FROM unnest(_places) WITH ORDINALITY p (place, standing) ORDER BY p.standing);
    IF NOT EXISTS (SELECT FROM unnest(_outcome.found) f WHERE (1 = ALL (f.passages)) IS FALSE) THEN
        passages := array_fill(1, ARRAY[cardinality(keys)]);
        RETURN;
    END IF;
    passages := ARRAY(
        SELECT coalesce(b.passage, 1)
        FROM unnest(keys) WITH ORDINALITY k (key, place) LEFT JOIN _best_passages(_outcome.found, keys, 1) b USING (key)
        ORDER BY k.place);
END
$$;

-- By what documents are compared, in their order: embeddings or token vectors, as those are that come with the call; of
-- each those of its best passage, its token vectors packed together: the first parts with 256, for all of two long ones
-- take seconds to compare.
CREATE OR REPLACE FUNCTION _vectors_of(_reranker rerankers, _outcome search_outcome, _places int[], _others vector[])
RETURNS vector[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    best record := _best_of_places(_outcome, _places);
    documents text := format('%s s ON s.passage = k.passage AND s.key = k.key',
        _side_table(_confined(_generation(_reranker.name, _reranker.generation), _outcome.partitions), 'passages'));
    embeddings vector[];
BEGIN
    IF _reranker.embedding_column IS NOT NULL THEN
        documents := format('%s d ON %s', _reranker.source, _same_key(_reranker, _key_of(_reranker, 'd'), 'k.key'));
    END IF;
    EXECUTE format($sql$
        SELECT array_agg(%s::vector ORDER BY k.place)
        FROM (
            SELECT u.key::%s AS key, u.passage, u.place FROM unnest($1, $2) WITH ORDINALITY u (key, passage, place)) k
        LEFT JOIN %s
        $sql$, (_distance_sql(_reranker)).embedding, _reranker.key_type, documents)
    INTO embeddings USING best.keys, best.passages;
    RETURN embeddings;
END
$$;

CREATE OR REPLACE FUNCTION _vectors_of(_reranker rerankers, _outcome search_outcome, _places int[], _others bytea[])
RETURNS bytea[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    best record := _best_of_places(_outcome, _places);
    tokens bytea[];
BEGIN
    EXECUTE format($sql$
        SELECT array_agg((
            SELECT string_agg(p.tokens, '') FILTER (WHERE p.so_far - p.count < 256)
            FROM (
                SELECT t.tokens, c.count, sum(c.count) OVER (ORDER BY t.part) AS so_far
                FROM %s t, LATERAL (SELECT get_byte(t.tokens, 8) + 256 * get_byte(t.tokens, 9) AS count) c
                WHERE (t.key, t.passage) = (k.key::%s, k.passage)) p) ORDER BY k.place)
        FROM unnest($1, $2) WITH ORDINALITY k (key, passage, place)
        $sql$, _side_table(
            _confined(_generation(_reranker.name, _reranker.generation), _outcome.partitions), 'tokens'),
        _reranker.key_type)
    INTO tokens USING best.keys, best.passages;
    RETURN tokens;
END
$$;

-- What the likeness of each document to others is measured by: of token vectors, MaxSim with itself.
CREATE OR REPLACE FUNCTION _units_of(_vectors vector[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT array_fill(1::float8, ARRAY[cardinality(_vectors)]) $$;

CREATE OR REPLACE FUNCTION _units_of(_vectors bytea[]) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    units float8[];
BEGIN
    EXECUTE 'SELECT array_agg(maxsim(v.tokens, v.tokens)::float8 ORDER BY v.standing) '
        'FROM unnest($1) WITH ORDINALITY v (tokens, standing)' INTO units USING _vectors;
    RETURN units;
END
$$;

-- How much of each document is in the most alike of others, by MaxSim: 0 where there is none.
CREATE OR REPLACE FUNCTION _likeness(_vectors bytea[], _units float8[], _others bytea[]) RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    likeness float8[];
BEGIN
    EXECUTE 'SELECT array_agg(greatest(0, (SELECT max(maxsim(v.tokens, o.tokens)) FROM unnest($3) o (tokens)) '
        '/ nullif(v.unit, 0)) ORDER BY v.standing) FROM unnest($1, $2) WITH ORDINALITY v (tokens, unit, standing)'
    INTO likeness USING _vectors, _units, _others;
    RETURN likeness;
END
$$;

-- How much alike each of these vectors is to the most alike of others: 0 where there is none, or they point apart.
CREATE OR REPLACE FUNCTION _likeness(_vectors vector[], _units float8[], _others vector[]) RETURNS float8[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(greatest(0, (
        SELECT max(nullif(1 - (v.vector <=> o.vector), 'NaN')) FROM unnest(_others) o (vector))) ORDER BY v.standing)
    FROM unnest(_vectors) WITH ORDINALITY v (vector, standing)
$$;

-- The likeness of each to the most alike of others, as it is with one more; NULL stays where nothing was known.
CREATE OR REPLACE FUNCTION _likeness_with(_likeness float8[], _vectors bytea[], _units float8[], _other bytea)
RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN ARRAY(
        SELECT CASE WHEN l.likeness IS NOT NULL THEN greatest(l.likeness, l.likeness_to_other) END
        FROM (
            SELECT unnest(_likeness) AS likeness,
                unnest(_likeness(_vectors, _units, ARRAY[_other])) AS likeness_to_other) l);
END
$$;

CREATE OR REPLACE FUNCTION _likeness_with(_likeness float8[], _vectors vector[], _units float8[], _other vector)
RETURNS float8[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN ARRAY(
        SELECT CASE WHEN l.likeness IS NOT NULL
            THEN greatest(l.likeness, nullif(1 - (l.vector <=> _other), 'NaN')) END
        FROM (SELECT unnest(_likeness) AS likeness, unnest(_vectors) AS vector) l);
END
$$;

-- Chooses documents of one wave, after those chosen of the waves before, until there are as many as wanted, one of each
-- group. It chooses among the first hundred, later among three times as many as are chosen; never among more because
-- more are wanted, so that the order of the first ones is always the same. Left out is what is more alike to one of the
-- chosen than the threshold allows.
CREATE OR REPLACE FUNCTION _choose(
    _reranker rerankers, _outcome search_outcome, _places int[], _wanted int,
    INOUT _chosen int[], INOUT _vectors anyarray, INOUT _left_out int[], _deadline timestamptz)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    threshold float8 := CASE WHEN _reranker.duplicate_threshold < 1 THEN _reranker.duplicate_threshold ELSE 2 END;
    before int := cardinality(_chosen);
    size int := 0;
    relevance float8[];
    vectors _vectors%TYPE := '{}';
    units float8[] := '{}';
    groups int[] := '{}';
    -- To the most alike of the chosen ones; NULL for these, and for what is of their groups.
    likeness float8[] := '{}';
    next int;
    other int;
BEGIN
    WHILE cardinality(_chosen) < _wanted AND clock_timestamp() < _deadline LOOP
        size := least(greatest(size, 100, 3 * (cardinality(_chosen) - before + 1)), cardinality(_places));
        IF size > cardinality(vectors) THEN
            relevance := _relevance(_outcome, _places[:size]);
            next := cardinality(vectors) + 1;
            vectors := vectors || _vectors_of(_reranker, _outcome, _places[next:size], _vectors);
            units := units || _units_of(vectors[next:]);
            likeness := likeness || _likeness(vectors[next:], units[next:], _vectors);
            groups := groups || ARRAY(
                SELECT _outcome.groups[p.place] FROM unnest(_places[next:size]) WITH ORDINALITY p (place, standing)
                WHERE _outcome.groups IS NOT NULL ORDER BY p.standing);
        END IF;
        next := (
            SELECT d.standing
            FROM (
                SELECT unnest(relevance) AS relevance, unnest(likeness) AS likeness,
                    generate_series(1, size) AS standing) d
            WHERE d.likeness <= threshold
            ORDER BY (1 - _reranker.diversity) * d.relevance - _reranker.diversity * d.likeness DESC, d.standing
            LIMIT 1);
        EXIT WHEN next IS NULL AND size = cardinality(_places);
        IF next IS NULL THEN
            size := size + 100;
            CONTINUE;
        END IF;
        _chosen := _chosen || _places[next];
        _vectors := _vectors || vectors[next];
        likeness[next] := NULL;
        likeness := _likeness_with(likeness, vectors, units, vectors[next]);
        FOREACH other IN ARRAY array_positions(groups, groups[next]) LOOP
            IF likeness[other] > threshold THEN
                _left_out := _left_out || _places[other];
            END IF;
            likeness[other] := NULL;
        END LOOP;
    END LOOP;
    _left_out := _left_out || ARRAY(
        SELECT _places[d.standing] FROM unnest(likeness) WITH ORDINALITY d (likeness, standing)
        WHERE d.likeness > threshold);
END
$$;

-- Chooses documents wave by wave, which end in the pool at _ends, by vectors of the type of those that are given.
CREATE OR REPLACE FUNCTION _chosen_in_waves(
    _reranker rerankers, _outcome search_outcome, _ends int[], _top_k int, _vectors anyarray, _deadline timestamptz,
    OUT chosen int[], OUT left_out int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    chosen := '{}';
    left_out := '{}';
    FOR wave IN 1..coalesce(cardinality(_ends), 0) LOOP
        SELECT c.* INTO chosen, _vectors, left_out
        FROM _choose(_reranker, _outcome, _outcome.pool[coalesce(_ends[wave - 1], 0) + 1:_ends[wave]], _top_k, chosen,
            _vectors, left_out, _deadline) c;
    END LOOP;
END
$$;

-- The outcome with its pool in the order in which documents are chosen. Those not chosen follow as they stood, as do
-- all that are not chosen by the deadline.
CREATE OR REPLACE FUNCTION _diversified(
    _reranker rerankers, _outcome search_outcome, _ends int[], _top_k int, _deadline timestamptz)
RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    chosen int[];
    left_out int[];
BEGIN
    IF _has_embeddings(_reranker, _generation(_reranker.name, _reranker.generation)) THEN
        SELECT c.chosen, c.left_out INTO chosen, left_out
        FROM _chosen_in_waves(_reranker, _outcome, _ends, _top_k, '{}'::vector[], _deadline) c;
    ELSE
        SELECT c.chosen, c.left_out INTO chosen, left_out
        FROM _chosen_in_waves(_reranker, _outcome, _ends, _top_k, '{}'::bytea[], _deadline) c;
    END IF;
    _outcome.pool := chosen || ARRAY(
        SELECT p.place FROM unnest(_outcome.pool) WITH ORDINALITY p (place, standing)
        WHERE p.place <> ALL (chosen || left_out) ORDER BY p.standing);
    _outcome.duplicates := cardinality(left_out);
    _outcome.times := _outcome.times || jsonb_build_object('diversity',
        coalesce((_outcome.times ->> 'diversity')::numeric, 0) + _milliseconds(started));
    RETURN _outcome;
END
$$;
