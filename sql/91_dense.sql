-- The dense leg of recall: the documents with the passages whose embeddings are nearest to the query's, by HNSW or
-- exactly.

-- What dense recall compares: an embedding (of the source d, or of the passage s), its distance to the query's, the
-- score that a distance of n makes: higher is better, whatever the distance; and the passage's number.
CREATE OR REPLACE FUNCTION _distance_sql(
    _reranker rerankers, _query text DEFAULT '$1',
    OUT embedding text, OUT distance text, OUT score text, OUT passage text)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    operator text := CASE _reranker.distance WHEN 'cosine' THEN '<=>' WHEN 'inner_product' THEN '<#>' ELSE '<->' END;
    of_type text := 'halfvec';
BEGIN
    embedding := 's.embedding';
    passage := 's.passage';
    IF _reranker.embedding_column IS NOT NULL THEN
        embedding := 'd.' || quote_ident(_reranker.embedding_column);
        of_type := (_embedding_column(_reranker.source, _reranker.embedding_column)).type;
        passage := 'NULL::int';
    END IF;
    distance := format('(%s %s %s::%s)', embedding, operator, _query, of_type);
    score := CASE _reranker.distance WHEN 'cosine' THEN '(1 - n.distance)::real' ELSE '(-n.distance)::real' END;
END
$$;

-- How many passages recall looks for at first: as many times the candidates as documents have passages in the mean, by
-- Postgres' own estimates, but no more than four times.
CREATE OR REPLACE FUNCTION _passages_at_first(_reranker rerankers, _generation generations) RETURNS int
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT ceil(_reranker.candidates * coalesce(least(4, greatest(1, p.rows / nullif(d.rows, 0))), 1))::int
    FROM (SELECT _estimated_rows(to_regclass(_side_table(_generation, 'passages'))) AS rows) p,
        (SELECT _estimated_rows(to_regclass(_side_table(_generation))) AS rows) d
$$;

-- Lets an HNSW scan yield so many rows, also through a filter; pgrerank.ef_search, where it is set, says how wide it
-- looks. Over nine collections twice the candidates finds .989 to 1.0 of exact recall's hundred, for some 1 ms more
-- than once the candidates, which finds .968 to 1.0. Returns the settings to go back to.
CREATE OR REPLACE FUNCTION _widen_hnsw(_candidates int, _widest float8) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    width int := coalesce(nullif(current_setting('pgrerank.ef_search', true), '')::int,
        greatest(2 * _candidates, 40));
    wanted jsonb := jsonb_build_object(
        'hnsw.ef_search', least(width, greatest(_widest, 10), 1000)::int,
        'hnsw.iterative_scan', 'relaxed_order',
        'hnsw.max_scan_tuples', greatest(20000, 20 * _candidates));
    before jsonb;
BEGIN
    PERFORM '[1]'::vector;  -- loads the library, which defines the settings
    SELECT jsonb_object_agg(w.key, current_setting(w.key)) INTO before FROM jsonb_each_text(wanted) w;
    PERFORM set_config(w.key, w.value, true) FROM jsonb_each_text(wanted) w;
    RETURN before;
END
$$;

-- The nearest documents. HNSW looks among all documents, and yields few of those that pass a narrow filter: exact
-- recall orders by an expression that no index serves. Where HNSW finds fewer than asked, all are compared if there is
-- time, some 3 µs each; where it finds none, anyway.
--
-- A statement can't be ended from within. So where there may be too little time for documents that have to be read from
-- a disk, HNSW looks around in small steps, six documents for each that it holds, and is left when the time is up.
CREATE OR REPLACE FUNCTION _recall_dense(
    _reranker rerankers, _generation generations, _call search_call, _scope search_scope,
    OUT keys text[], OUT scores real[], OUT passages int[], OUT shortage text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    readable float8 := _readable_until(_scope.deadline);
    is_in_haste boolean := readable < 6 * 2 * _reranker.candidates;
    size int := CASE WHEN _reranker.embedding_column IS NULL THEN _passages_at_first(_reranker, _generation)
        ELSE _reranker.candidates END;
    found int;
    before jsonb := _widen_hnsw(size, CASE WHEN is_in_haste THEN readable / 6 / 3 ELSE 1000 END);
    is_exact boolean := _call.recall = 'exact'
        OR (_call.recall = 'auto'
            AND _scope.matching <= least(_exact_up_to(_reranker.candidates, _scope.documents), readable));
BEGIN
    IF is_in_haste AND NOT is_exact THEN
        SELECT n.keys, n.scores, n.passages INTO keys, scores, passages FROM _nearest_until(_reranker, _call, _scope) n;
        IF keys IS NULL THEN
            PERFORM _check_deadline(_scope.deadline, 'HNSW found a document');
        END IF;
    ELSE
        SELECT n.keys, n.scores, n.passages INTO keys, scores, passages
        FROM _nearest_documents(_reranker, _call, _scope, is_exact, size) n;
    END IF;
    found := coalesce(cardinality(_distinct(keys, passages)), 0);
    IF _call.recall = 'auto' AND NOT is_exact AND found < least(_reranker.candidates, _scope.documents) THEN
        IF keys IS NULL OR clock_timestamp() + _scope.documents * interval '3 microseconds' < _scope.deadline THEN
            SELECT n.keys, n.scores, n.passages INTO keys, scores, passages
            FROM _nearest_documents(_reranker, _call, _scope, true, size) n;
        ELSE
            shortage := format('HNSW found %s documents where %s were asked for, and the timeout leaves no time to '
                'compare all', found, _reranker.candidates);
        END IF;
    END IF;
    PERFORM set_config(b.key, b.value, true) FROM jsonb_each_text(before) b;
END
$$;

-- How many documents can be read until then if each comes from a disk: 20 in a millisecond.
CREATE OR REPLACE FUNCTION _readable_until(_deadline timestamptz) RETURNS float8
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT greatest(20 * 1000 * extract(epoch FROM _deadline - clock_timestamp()), 20) $$;

-- Up to how many matching documents exact recall is no slower than HNSW, which besides may miss some and through a
-- filter has to look at documents / matching times as many as it yields. Measured by benchmarks/tenants.py.
CREATE OR REPLACE FUNCTION _exact_up_to(_candidates int, _documents float8) RETURNS float8
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT greatest(3000, sqrt(2 * _candidates * _documents)) $$;

-- Up to how many documents a tenant wants no index of its own: a third of what takes as long by HNSW over all, but no
-- fewer than are compared in a few milliseconds. Every index costs each search's planning a few microseconds.
CREATE OR REPLACE FUNCTION _unindexed_up_to(_candidates int, _documents float8) RETURNS float8
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT greatest(3000, _exact_up_to(_candidates, _documents) / 3) $$;

-- A query for the nearest passages, their number in $2: key, passage and distance.
CREATE OR REPLACE FUNCTION _nearest_sql(_reranker rerankers, _scope search_scope, _is_exact boolean) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    measure record := _distance_sql(_reranker);
    documents text := format('%s d', _reranker.source);
BEGIN
    IF _reranker.embedding_column IS NULL THEN
        documents := format('%s s JOIN %s d ON %s',
            _side_table(_reranker.name, _reranker.generation, 'passages'), _reranker.source,
            _same_key(_reranker, _key_of(_reranker, 'd'), 's.key'));
    END IF;
    RETURN format('SELECT %s AS key, %s AS passage, %s AS distance FROM %s',
            _key_of(_reranker, 'd'), measure.passage, measure.distance, documents)
        || format(' WHERE %s IS NOT NULL AND %s', measure.embedding, _scope.side_predicate)
        || format(' ORDER BY %s LIMIT $2', measure.distance || CASE WHEN _is_exact THEN ' + 0' ELSE '' END);
END
$$;

CREATE OR REPLACE FUNCTION _nearest(
    _reranker rerankers, _call search_call, _scope search_scope, _is_exact boolean, _size int,
    OUT keys text[], OUT scores real[], OUT passages int[], OUT documents int)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format($sql$
        WITH nearest AS MATERIALIZED (%s)
        SELECT array_agg(n.key::text), array_agg(%s), array_agg(n.passage), count(DISTINCT n.key) FROM nearest n
        $sql$, _nearest_sql(_reranker, _scope, _is_exact), (_distance_sql(_reranker)).score)
    INTO keys, scores, passages, documents USING _call.query_embedding, _size;
END
$$;

-- The nearest passages of as many documents as are candidates: it looks for twice as many where they are of too few,
-- up to eight times as many as it began with. An exact recall then compares documents, each by its nearest passage.
CREATE OR REPLACE FUNCTION _nearest_documents(
    _reranker rerankers, _call search_call, _scope search_scope, _is_exact boolean, _size int,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    size int := _size;
    found record;
BEGIN
    LOOP
        found := _nearest(_reranker, _call, _scope, _is_exact, size);
        EXIT WHEN found.documents >= _reranker.candidates OR coalesce(cardinality(found.keys), 0) < size
            OR _is_exact OR size >= 8 * _size OR clock_timestamp() >= _scope.deadline;
        size := 2 * size;
    END LOOP;
    IF _is_exact AND found.documents < _reranker.candidates AND cardinality(found.keys) >= size THEN
        SELECT n.keys, n.scores, n.passages INTO keys, scores, passages
        FROM _nearest_of_all(_reranker, _call, _scope) n;
        RETURN;
    END IF;
    keys := found.keys;
    scores := found.scores;
    passages := found.passages;
    IF found.documents > _reranker.candidates THEN
        SELECT array_agg(n.key), array_agg(n.score), array_agg(n.passage) INTO keys, scores, passages
        FROM (
            SELECT p.*, dense_rank() OVER (ORDER BY p.best DESC, p.key) AS place
            FROM (
                SELECT u.*, max(u.score) OVER (PARTITION BY u.key) AS best
                FROM unnest(keys, scores, passages) u (key, score, passage)) p) n
        WHERE n.place <= _reranker.candidates;
    END IF;
END
$$;

-- The nearest passage of each of the nearest documents, of all compared.
CREATE OR REPLACE FUNCTION _nearest_of_all(
    _reranker rerankers, _call search_call, _scope search_scope, OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format($sql$
        SELECT array_agg(n.key::text), array_agg(%s), array_agg(n.passage)
        FROM (
            SELECT b.* FROM (SELECT DISTINCT ON (a.key) a.* FROM (%s) a ORDER BY a.key, a.distance) b
            ORDER BY b.distance LIMIT $3) n
        $sql$, (_distance_sql(_reranker)).score, _nearest_sql(_reranker, _scope, true))
    INTO keys, scores, passages USING _call.query_embedding, NULL::bigint, _reranker.candidates;
END
$$;

-- Those that HNSW yields until the deadline. They come by tens.
CREATE OR REPLACE FUNCTION _nearest_until(
    _reranker rerankers, _call search_call, _scope search_scope,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    found record;
BEGIN
    FOR found IN EXECUTE format('SELECT n.key::text, %s AS score, n.passage FROM (%s) n',
        (_distance_sql(_reranker)).score, _nearest_sql(_reranker, _scope, false))
        USING _call.query_embedding, _reranker.candidates
    LOOP
        keys := keys || found.key;
        scores := scores || found.score;
        passages := passages || found.passage;
        EXIT WHEN clock_timestamp() >= _scope.deadline;
    END LOOP;
END
$$;

-- The scores of documents that something else has found: each by its best passage.
CREATE OR REPLACE FUNCTION _score_dense(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    measure record := _distance_sql(_reranker);
    documents text := format(
        '%s s ON s.key = k.key', _side_table(_generation, 'passages'));
BEGIN
    IF _reranker.embedding_column IS NOT NULL THEN
        documents := format('%s d ON %s', _reranker.source, _same_key(_reranker, _key_of(_reranker, 'd'), 'k.key'));
    END IF;
    EXECUTE format($sql$
        SELECT array_agg(n.key::text), array_agg(%s), array_agg(n.passage)
        FROM (
            SELECT DISTINCT ON (p.key) p.* FROM (
                SELECT k.key, %s FROM (SELECT u.key::%s AS key FROM unnest($2) u (key)) k JOIN %s) p
            ORDER BY p.key, p.distance, p.passage) n
        $sql$, measure.score, measure.passage || ' AS passage, ' || measure.distance || ' AS distance',
        _reranker.key_type, documents)
    INTO keys, scores, passages USING _call.query_embedding, _keys;
END
$$;
