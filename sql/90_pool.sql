-- A search's pool: candidates, each by its place in one array, in their order. What a stage says of them are arrays
-- parallel to that one; by those the pool is ordered anew. Here is what stages have in common; each has a file of its
-- own. All of it is SECURITY INVOKER: the caller's grants and row-level security decide what is read.

DO $do$
BEGIN
    IF to_regtype('pgrerank.scored') IS NULL THEN
        CREATE TYPE scored AS (stage text, scores real[], ranks int[], totals real[]);
    END IF;
    IF to_regtype('pgrerank.scored_passages') IS NULL THEN
        CREATE TYPE scored_passages AS (stage text, keys text[], passages int[], scores real[]);
    END IF;
    IF to_regtype('pgrerank.search_call') IS NULL THEN
        CREATE TYPE search_call AS (
            query text, top_k int, filter jsonb, stages text[], keys text[], key_scores double precision[],
            query_embedding vector, query_tokens bytea, recall text, "strict" boolean, generation int, after text[],
            settings jsonb, found scored_passages[]);
    END IF;
    IF to_regtype('pgrerank.search_scope') IS NULL THEN
        CREATE TYPE search_scope AS (
            predicate text, side_predicate text, matching float8, documents float8, deadline timestamptz,
            partitions int[]);
    END IF;
    IF to_regtype('pgrerank.search_outcome') IS NULL THEN
        CREATE TYPE search_outcome AS (
            candidates text[], pool int[], said scored[], reason text, times jsonb, cross_encoder_model text,
            fallback text, groups int[], returned int, duplicates int, call search_call, relevances real[],
            left_out int, before int, found scored_passages[], shown jsonb, partitions int[]);
    END IF;
    IF to_regtype('pgrerank.search_plan') IS NULL THEN
        CREATE TYPE search_plan AS (
            legs text[], stages text[], needs_tokens boolean, scope search_scope, begun search_outcome);
    END IF;
END
$do$;

-- Attributes of a composite type as a list of columns.
CREATE OR REPLACE FUNCTION _attributes(_type regtype, OUT names text[], OUT columns text)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(a.attname::text ORDER BY a.attnum),
        string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid
    WHERE t.reltype = _type AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- What a search returns: these columns, and two for each stage. With other stages than before the type is made anew,
-- and with it the internal functions that name it, below and in later files.
DO $do$
DECLARE
    columns text := 'key text, score real, rank integer, stage text, degraded boolean, reason text, '
        'cross_encoder_model text, signals_score real, relevance real, passage text, passage_start integer, '
        'passage_end integer, passages jsonb, highlights jsonb, ' || (
        SELECT string_agg(format('%s_score real, %1$s_rank integer', s.stage), ', ' ORDER BY s.place) FROM _stages() s);
BEGIN
    IF (_attributes(to_regtype('pgrerank.ranked'))).columns IS DISTINCT FROM columns THEN
        DROP TYPE IF EXISTS ranked CASCADE;
        EXECUTE format('CREATE TYPE ranked AS (%s)', columns);
    END IF;
END
$do$;
COMMENT ON TYPE scored IS
    'What a stage said of candidates, in their places: its scores, their ranks, and the totals by which it ranked';
COMMENT ON TYPE scored_passages IS 'What a stage said of passages: their documents, their numbers there, their scores';
COMMENT ON TYPE search_call IS
    'What a search was asked; settings has those given in place of the reranker''s own, found what stages have said of '
    'passages';
COMMENT ON TYPE search_outcome IS
    'What became of a search: candidates, their places in the last order, what every stage said, why it is degraded, '
    'milliseconds by stage, which cross-encoder read, and why it was the fallback, the candidates'' groups, how many '
    'of the order are returned, how many are left out as near-duplicates, the call with its query''s vectors, '
    'relevance in the candidates'' places, how many min_relevance has left out, how many pages before have had, what '
    'was said of passages, those to be shown, by key, and the partitions that were read, NULL where it is all';
COMMENT ON TYPE search_scope IS
    'Where a search looks, and how long: its filter as SQL over the source d, and over the side table s beside it, '
    'how many documents the planner expects to match, of how many, when it has to answer, and the partitions to be '
    'read, NULL where it is all';
COMMENT ON TYPE search_plan IS
    'What a search is to do: the legs of its recall, the stages after them, whether these want token vectors of the '
    'query, where it looks, though not until when, and what is done of it already';
COMMENT ON TYPE ranked IS 'A document that a search returns, with the score and rank of every stage that it has passed';

-- Milliseconds since then.
CREATE OR REPLACE FUNCTION _milliseconds(_since timestamptz) RETURNS numeric
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT round(1000 * extract(epoch FROM clock_timestamp() - _since), 3) $$;

-- Ends a stage that would begin after the deadline, or go on.
CREATE OR REPLACE FUNCTION _check_deadline(_deadline timestamptz, _what text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF clock_timestamp() >= _deadline THEN
        PERFORM _raise('PGR02', format('the deadline passed before %s', _what));
    END IF;
END
$$;

-- Scores in the places of the candidates that have those keys: a document's is that of its best passage. One that is
-- not finite is none. Most often keys are the candidates, as these were made of them.
CREATE OR REPLACE FUNCTION _by_place(_candidates text[], _keys text[], _scores real[]) RETURNS real[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _keys = _candidates AND ('-Infinity' < ALL (_scores)) AND ('Infinity' > ALL (_scores)) THEN _scores
        ELSE (
            SELECT array_agg(b.score ORDER BY b.place)
            FROM (
                SELECT c.place, max(s.score) AS score
                FROM unnest(_candidates) WITH ORDINALITY c (key, place)
                LEFT JOIN unnest(_keys, _scores) s (key, score)
                    ON s.key = c.key AND s.score > '-Infinity' AND s.score < 'Infinity'
                GROUP BY c.place) b) END
$$;

-- The weighted sum of what stages said, of those candidates that the last of them scored: each score less its mean over
-- these, in units of its standard deviation there (Montague and Aslam, CIKM 2001: zero-mean, unit-variance). What has
-- no score of a candidate, no weight, or the same score for all, adds nothing. What signals say is added as it is.
-- pgrerank/evaluation/pools.py computes the same.
CREATE OR REPLACE FUNCTION _blended(_said scored[], _weights jsonb) RETURNS real[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    latest real[] := _said[cardinality(_said)].scores;
    totals float8[];
    one scored;
    mean float8;
    unit float8;
BEGIN
    FOREACH one IN ARRAY _said LOOP
        CONTINUE WHEN NOT _weights ? one.stage;
        mean := 0;
        unit := 1;
        IF one.stage <> 'signals' THEN
            SELECT avg(s.score::float8), (_weights ->> one.stage)::float8 / nullif(stddev_pop(s.score::float8), 0)
            INTO mean, unit
            FROM (SELECT unnest(one.scores) AS score, unnest(latest) AS latest) s WHERE s.latest IS NOT NULL;
        END IF;
        totals := ARRAY(
            SELECT CASE WHEN t.latest IS NOT NULL
                THEN coalesce(t.total, 0) + coalesce((t.score - mean) * unit, 0) END
            FROM (SELECT unnest(totals) AS total, unnest(one.scores) AS score, unnest(latest) AS latest) t);
    END LOOP;
    RETURN totals::real[];
END
$$;

-- The sum of reciprocal ranks in what stages said (Cormack, Clarke and Büttcher, SIGIR 2009; k 60), of those candidates
-- that the last of them scored.
CREATE OR REPLACE FUNCTION _reciprocal_ranks(_said scored[]) RETURNS real[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(t.total ORDER BY t.place)
    FROM (
        SELECT r.place, CASE WHEN bool_or(r.score IS NOT NULL AND s.number = cardinality(_said))
            THEN sum(1.0 / (60 + r.rank)) END AS total
        FROM unnest(_said) WITH ORDINALITY s (stage, scores, ranks, totals, number),
            unnest(s.scores, s.ranks) WITH ORDINALITY r (score, rank, place)
        GROUP BY r.place) t
$$;

-- The places of candidates that have totals, the highest first; of equal ones the lower key.
CREATE OR REPLACE FUNCTION _ranking(_candidates text[], _totals real[]) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN ARRAY(
        SELECT t.place
        FROM (
            SELECT unnest(_candidates) AS key, unnest(_totals) AS total,
                generate_series(1, cardinality(_candidates)) AS place) t
        WHERE t.total IS NOT NULL ORDER BY t.total DESC, t.key);
END
$$;

-- The rank of each of so many candidates, given the ranking; NULL where it lacks one.
CREATE OR REPLACE FUNCTION _ranks(_ranking int[], _candidates int) RETURNS int[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    ranks int[] := array_fill(NULL::int, ARRAY[_candidates]);
    rank int := 0;
    place int;
BEGIN
    FOREACH place IN ARRAY _ranking LOOP
        rank := rank + 1;
        ranks[place] := rank;
    END LOOP;
    RETURN ranks;
END
$$;

-- What a stage says of candidates by its scores in their places: its totals are those or, where weights are given, the
-- blend of all so far.
CREATE OR REPLACE FUNCTION _said(_outcome search_outcome, _stage text, _scores real[], _weights jsonb) RETURNS scored
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    said scored := (_stage, _scores, NULL, _scores);
BEGIN
    IF _weights IS NOT NULL THEN
        said.totals := _blended(_outcome.said || said, _weights);
    END IF;
    RETURN said;
END
$$;

-- The outcome after a stage has scored candidates, ranked by its totals, or fused with the stage before by reciprocal
-- ranks. What it ranked comes first in the pool, the rest as it stood.
CREATE OR REPLACE FUNCTION _with_said(_outcome search_outcome, _said scored, _is_fused boolean DEFAULT false)
RETURNS search_outcome
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    size int := cardinality(_outcome.candidates);
    ranking int[] := _ranking(_outcome.candidates, _said.totals);
    ranks int[] := _ranks(ranking, size);
BEGIN
    _said.ranks := ranks;
    IF _is_fused THEN
        ranking := _ranking(_outcome.candidates, _reciprocal_ranks(_outcome.said || _said));
        ranks := _ranks(ranking, size);
        _said.ranks := ranks;
    END IF;
    _outcome.said := _outcome.said || _said;
    _outcome.pool := CASE WHEN size = cardinality(ranking) AND size = cardinality(_outcome.pool) THEN ranking
        ELSE ARRAY(
            SELECT p.place FROM unnest(_outcome.pool) WITH ORDINALITY p (place, before)
            ORDER BY ranks[p.place], p.before) END;
    RETURN _outcome;
END
$$;

-- The keys of the first candidates of a pool, in no order.
CREATE OR REPLACE FUNCTION _first_keys(_outcome search_outcome, _size int) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _size >= cardinality(_outcome.candidates)
            AND cardinality(_outcome.pool) = cardinality(_outcome.candidates) THEN _outcome.candidates
        ELSE ARRAY(
            SELECT c.key FROM unnest(_outcome.candidates) WITH ORDINALITY c (key, place)
            JOIN unnest(_outcome.pool[:_size]) p (place) USING (place)) END
$$;

-- What every stage said of the first candidates of a pool, a row each; the later stage has the higher number. Arrays in
-- variables of their own are looked into by place without a search.
CREATE OR REPLACE FUNCTION _said_of_first(_outcome search_outcome, _size int)
RETURNS TABLE (key text, standing int, stage text, score real, rank int, total real, number int)
LANGUAGE plpgsql IMMUTABLE ROWS 50
SET search_path FROM CURRENT
AS $$
DECLARE
    candidates text[] := _outcome.candidates;
    one scored;
    scores real[];
    ranks int[];
    totals real[];
BEGIN
    number := 0;
    FOREACH one IN ARRAY coalesce(_outcome.said, '{}') LOOP
        number := number + 1;
        scores := one.scores;
        ranks := one.ranks;
        totals := one.totals;
        RETURN QUERY
            SELECT candidates[p.place], p.standing::int, one.stage, scores[p.place], ranks[p.place], totals[p.place],
                number
            FROM unnest(_outcome.pool[:_size]) WITH ORDINALITY p (place, standing);
    END LOOP;
END
$$;

-- How many candidates each stage has scored, and how many near-duplicates are left out.
CREATE OR REPLACE FUNCTION _scored_counts(_outcome search_outcome) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT coalesce(jsonb_object_agg(s.stage, coalesce(cardinality(array_remove(s.scores, NULL)), 0)), '{}')
        || jsonb_strip_nulls(jsonb_build_object('duplicates', _outcome.duplicates))
    FROM unnest(_outcome.said) s (stage, scores, ranks, totals)
$$;

-- The same in arrays by stage.
CREATE OR REPLACE FUNCTION _by_stage(_outcome search_outcome, _size int)
RETURNS TABLE (stage text, scores real[], ranks int[])
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT s.stage, array_agg(s.score ORDER BY s.standing), array_agg(s.rank ORDER BY s.standing)
    FROM _said_of_first(_outcome, _size) s GROUP BY s.stage
$$;

-- _ranked(outcome, top_k): the first documents of a pool as a search returns them. A document's score is what was
-- said of it last; its stage is the last one that ranked it, which signals are not. It is written out of the stages,
-- whose rows become columns here and nowhere else.
DO $do$
BEGIN
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION _ranked(_outcome search_outcome, _top_k int) RETURNS SETOF ranked
        LANGUAGE sql STABLE ROWS 10
        SET search_path FROM CURRENT
        AS $body$
            SELECT d.key, d.score, d.standing + coalesce(_outcome.before, 0), d.stage, _outcome.reason IS NOT NULL,
                coalesce(_outcome.reason, _outcome.fallback),
                CASE WHEN d.cross_encoder_score IS NOT NULL THEN _outcome.cross_encoder_model END, d.signals_score,
                _outcome.relevances[_outcome.pool[d.standing]], p.text, p.start, p."end", p.passages, p.highlights, %s
            FROM (
                SELECT s.key, s.standing,
                    (array_agg(s.total ORDER BY s.number DESC) FILTER (WHERE s.rank IS NOT NULL))[1] AS score,
                    (array_agg(s.stage ORDER BY s.number DESC)
                        FILTER (WHERE s.rank IS NOT NULL AND s.stage <> 'signals'))[1] AS stage,
                    max(s.score) FILTER (WHERE s.stage = 'signals') AS signals_score, %s
                FROM _said_of_first(_outcome, _top_k) s
                GROUP BY s.key, s.standing) d
            LEFT JOIN jsonb_to_record(_outcome.shown -> d.key)
                AS p (text text, start int, "end" int, passages jsonb, highlights jsonb) ON true
            ORDER BY d.standing
        $body$ $sql$, (
        SELECT string_agg(format('d.%s_score, d.%1$s_rank', s.stage), ', ' ORDER BY s.place) FROM _stages() s), (
        SELECT string_agg(format('max(s.score) FILTER (WHERE s.stage = %1$L) AS %1$s_score, '
            'max(s.rank) FILTER (WHERE s.stage = %1$L) AS %1$s_rank', s.stage), ', ' ORDER BY s.place)
        FROM _stages() s));
END
$do$;
