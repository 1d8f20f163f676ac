-- What is done for many queries at once, each by one statement for all: what one leg of recall says of the other leg's
-- documents, and MaxSim.

-- What dense recall says of documents and queries: of keys, and of the query whose number stands beside each.
CREATE OR REPLACE FUNCTION _dense_together(
    _reranker rerankers, _generation generations, _calls search_call[], _keys text[], _numbers int[])
RETURNS TABLE (query_number int, keys text[], passages int[], scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    measure record := _distance_sql(_reranker, 'q.embedding');
    documents text := format('%s s ON s.key = k.key', _side_table(_generation, 'passages'));
BEGIN
    IF _reranker.embedding_column IS NOT NULL THEN
        documents := format('%s d ON %s', _reranker.source, _same_key(_reranker, _key_of(_reranker, 'd'), 'k.key'));
    END IF;
    RETURN QUERY EXECUTE format($sql$
        SELECT n.number, array_agg(n.key::text), array_agg(n.passage), array_agg(%s)
        FROM (
            SELECT DISTINCT ON (p.number, p.key) p.* FROM (
                SELECT k.number, k.key, %s
                FROM (SELECT u.key::%s AS key, u.number FROM unnest($1, $2) u (key, number)) k
                JOIN unnest($3) WITH ORDINALITY q (embedding, number) USING (number) JOIN %s) p
            ORDER BY p.number, p.key, p.distance, p.passage) n
        GROUP BY n.number
        $sql$, measure.score, measure.passage || ' AS passage, ' || measure.distance || ' AS distance',
        _reranker.key_type, documents)
    USING _keys, _numbers, ARRAY(SELECT c.query_embedding FROM unnest(_calls) c);
END
$$;

-- The same of lexical recall.
CREATE OR REPLACE FUNCTION _lexical_together(
    _reranker rerankers, _generation generations, _calls search_call[], _keys text[], _numbers int[])
RETURNS TABLE (query_number int, keys text[], passages int[], scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    known word_statistics := _word_statistics(_generation);
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT k.number, array_agg(s.key::text), NULL::int[],
            array_agg(coalesce(0 - (s.weights <#> q.weights), 0)::real)
        FROM (SELECT u.key::%s AS key, u.number FROM unnest($1, $2) u (key, number)) k
        JOIN unnest($3) WITH ORDINALITY q (weights, number) USING (number) JOIN %s s ON s.key = k.key
        GROUP BY k.number
        $sql$, _reranker.key_type, _side_table(_generation, 'words'))
    USING _keys, _numbers, ARRAY(
        SELECT (SELECT _sparse(array_agg(w.lexeme), array_agg(w.idf)) FROM _query_words(_generation, known, c.query) w)
        FROM unnest(_calls) c);
END
$$;

-- What a leg says of those candidates of each of these calls that only the other leg has found. Of all calls the legs'
-- parts stand one after another, as in what was found.
CREATE OR REPLACE FUNCTION _missing_together(
    _leg int, _legs text[], _reranker rerankers, _generation generations, _calls search_call[],
    _outcomes search_outcome[], _found scored[], INOUT _rest scored_passages[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    missing text[];
    keys text[] := '{}';
    numbers int[] := '{}';
    one record;
BEGIN
    FOR number IN 1..cardinality(_calls) LOOP
        missing := _unscored(_found[(number - 1) * cardinality(_legs) + _leg], _outcomes[number].candidates);
        keys := keys || missing;
        numbers := numbers || array_fill(number, ARRAY[cardinality(missing)]);
    END LOOP;
    IF keys = '{}' THEN
        RETURN;
    END IF;
    FOR one IN EXECUTE format('SELECT t.* FROM %I($1, $2, $3, $4, $5) t', format('_%s_together', _legs[_leg]))
        USING _reranker, _generation, _calls, keys, numbers
    LOOP
        _rest[(one.query_number - 1) * cardinality(_legs) + _leg] :=
            (_legs[_leg], one.keys, one.passages, one.scores)::scored_passages;
    END LOOP;
END
$$;

-- These outcomes, each with its share of the time that a stage has taken since then.
CREATE OR REPLACE FUNCTION _with_share(_outcomes search_outcome[], _stage text, _since timestamptz)
RETURNS search_outcome[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    took numeric := round(_milliseconds(_since) / cardinality(_outcomes), 3);
BEGIN
    FOR number IN 1..cardinality(_outcomes) LOOP
        _outcomes[number].times := _outcomes[number].times || jsonb_build_object(
            _stage, coalesce((_outcomes[number].times ->> _stage)::numeric, 0) + took);
    END LOOP;
    RETURN _outcomes;
END
$$;

-- The outcomes of these calls after recall.
CREATE OR REPLACE FUNCTION _recall_together(
    _reranker rerankers, _generation generations, _calls search_call[], _plan search_plan) RETURNS search_outcome[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    scope search_scope := _plan.scope;
    legs int := cardinality(_plan.legs);
    outcomes search_outcome[];
    found scored[];
    rest scored_passages[] := array_fill(
        (NULL, NULL, NULL, NULL)::scored_passages, ARRAY[legs * cardinality(_calls)]);
    started timestamptz;
    one record;
    places int[];
BEGIN
    FOR number IN 1..cardinality(_calls) LOOP
        scope.deadline := clock_timestamp() + _reranker.timeout;
        outcomes[number].times := '{}';
        one := _find(_reranker, _generation, _calls[number], _plan.legs, scope, outcomes[number]);
        outcomes[number] := one._outcome;
        found := found || one.by_leg;
    END LOOP;
    FOR leg IN 1..legs LOOP
        started := clock_timestamp();
        rest := _missing_together(leg, _plan.legs, _reranker, _generation, _calls, outcomes, found, rest);
        outcomes := _with_share(outcomes, _plan.legs[leg], started);
    END LOOP;
    FOR number IN 1..cardinality(_calls) LOOP
        outcomes[number] := _with_signals(_reranker, _calls[number], _plan.legs, _recalled(
            _reranker, _generation, _calls[number], outcomes[number], found[(number - 1) * legs + 1:number * legs],
            rest[(number - 1) * legs + 1:number * legs]));
    END LOOP;
    RETURN outcomes;
END
$$;

-- MaxSim of documents and queries: of all passages of keys or, where a passage stands beside a key, of that; and of the
-- query whose number stands beside both. Each part is read once for all queries that want it. By number, what
-- _score_STAGE returns.
CREATE OR REPLACE FUNCTION _maxsim_together(
    _token_table text, _key_type text, _keys text[], _passages int[], _numbers int[], _queries bytea[])
RETURNS TABLE (query_number int, keys text[], scores real[], passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    parts text := format('SELECT t.key, t.passage, _maxsim_each($4, w.numbers, t.tokens) AS scores FROM %s t WHERE ',
        _token_table);
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT u.number, array_agg(s.key::text), array_agg(u.score), array_agg(s.passage)
        FROM (
            SELECT k.key::%s AS key, k.passage, array_agg(k.number) AS numbers
            FROM unnest($1, $2, $3) k (key, passage, number) GROUP BY 1, 2) w
        CROSS JOIN LATERAL (%s UNION ALL %s) s
        CROSS JOIN unnest(w.numbers, s.scores) u (number, score)
        GROUP BY u.number
        $sql$, _key_type, parts || 'w.passage IS NULL AND t.key = w.key GROUP BY t.key, t.passage',
        parts || '(t.key, t.passage) = (w.key, w.passage) GROUP BY t.key, t.passage')
    USING _keys, _passages, _numbers, _queries;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('PGR03', format('MaxSim of %s: %s', _token_table, SQLERRM));
END
$$;

-- What a stage of MaxSim says of the first candidates of each of these calls.
CREATE OR REPLACE FUNCTION _score_together(
    _stage text, _reranker rerankers, _generation generations, _calls search_call[], _outcomes search_outcome[])
RETURNS TABLE (query_number int, known scored_passages)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    wanted record;
    keys text[];
    passages int[];
    numbers int[];
BEGIN
    FOR number IN 1..cardinality(_calls) LOOP
        CONTINUE WHEN _outcomes[number].pool IS NULL;
        wanted := _passages_to_score(_reranker, _generation, _calls[number], _first_keys(
            _outcomes[number], _scores_first(_stage, _reranker, _calls[number], _outcomes[number])));
        keys := keys || wanted.whole || wanted.keys;
        passages := passages || array_fill(NULL::int, ARRAY[cardinality(wanted.whole)]) || wanted.passages;
        numbers := numbers || array_fill(number, ARRAY[cardinality(keys) - coalesce(cardinality(numbers), 0)]);
    END LOOP;
    RETURN QUERY
        SELECT m.query_number, (_stage, m.keys, m.passages, m.scores)::scored_passages
        FROM _maxsim_together(
            _side_table(_generation, CASE _stage WHEN 'maxsim' THEN 'tokens' ELSE 'bits' END), _reranker.key_type,
            keys, passages, numbers, ARRAY(SELECT c.query_tokens FROM unnest(_calls) c)) m;
END
$$;

-- The outcomes of these calls after a stage of MaxSim.
CREATE OR REPLACE FUNCTION _run_together(
    _stage text, _reranker rerankers, _generation generations, _calls search_call[], _outcomes search_outcome[])
RETURNS search_outcome[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    said record;
BEGIN
    FOR said IN SELECT * FROM _score_together(_stage, _reranker, _generation, _calls, _outcomes) LOOP
        _outcomes[said.query_number] := _run_stage(_stage, _reranker, _generation, _calls[said.query_number],
            _outcomes[said.query_number], clock_timestamp() + _reranker.timeout, said.known);
        _outcomes[said.query_number].times := _outcomes[said.query_number].times - _stage;
    END LOOP;
    RETURN _with_share(_outcomes, _stage, started);
END
$$;
