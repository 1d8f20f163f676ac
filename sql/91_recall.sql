-- Recall makes the pool: by HNSW or exactly, from the caller's own keys, or by full text while no worker answers.

-- What recall compares: the document's embedding (of the source d or the side table s), its distance to the query's,
-- which is $1, and the score that a distance of n makes: higher is better, whatever the distance. A distance that is
-- not finite, as that of zeros by cosine is, makes none.
CREATE OR REPLACE FUNCTION _distance_sql(_reranker rerankers, OUT embedding text, OUT distance text, OUT score text)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    operator text := CASE _reranker.distance WHEN 'cosine' THEN '<=>' WHEN 'inner_product' THEN '<#>' ELSE '<->' END;
    of_type text := 'halfvec';
BEGIN
    embedding := 's.embedding';
    IF _reranker.embedding_column IS NOT NULL THEN
        embedding := 'd.' || quote_ident(_reranker.embedding_column);
        of_type := (_embedding_column(_reranker.source, _reranker.embedding_column)).type;
    END IF;
    distance := format('(%s %s $1::%s)', embedding, operator, of_type);
    score := format($score$nullif(nullif(nullif((%s)::real, 'NaN'), 'Infinity'), '-Infinity')$score$,
        CASE _reranker.distance WHEN 'cosine' THEN '1 - n.distance' ELSE '-n.distance' END);
END
$$;

-- Lets an HNSW scan yield so many rows, also through a filter; pgrerank.ef_search, where it is set, says how wide it
-- looks. Over nine collections twice the candidates finds .989 to 1.0 of exact recall's hundred, for some 1 ms more
-- than once the candidates, which finds .968 to 1.0. Returns the settings to go back to.
CREATE OR REPLACE FUNCTION _widen_hnsw(_candidates int) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    wanted jsonb := jsonb_build_object('hnsw.ef_search', coalesce(
        nullif(current_setting('pgrerank.ef_search', true), '')::int, least(greatest(2 * _candidates, 40), 1000)));
    before jsonb;
BEGIN
    PERFORM '[1]'::vector;  -- loads the library, which defines the settings
    IF current_setting('hnsw.iterative_scan', true) IS NOT NULL THEN
        wanted := wanted || jsonb_build_object(
            'hnsw.iterative_scan', 'relaxed_order', 'hnsw.max_scan_tuples', greatest(20000, 20 * _candidates));
    END IF;
    SELECT jsonb_object_agg(w.key, current_setting(w.key)) INTO before FROM jsonb_each_text(wanted) w;
    PERFORM set_config(w.key, w.value, true) FROM jsonb_each_text(wanted) w;
    RETURN before;
END
$$;

-- The nearest documents. Exact recall orders by an expression that no index serves; so does a recall of more than HNSW
-- can be made to yield where pgvector has no iterative scan.
CREATE OR REPLACE FUNCTION _recall_by_embedding(_reranker rerankers, _embedding vector, _predicate text, _exact boolean)
RETURNS scored[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    measure record := _distance_sql(_reranker);
    documents text := format('%s d', _reranker.source);
    before jsonb := _widen_hnsw(_reranker.candidates);
    recalled scored[];
BEGIN
    IF _reranker.embedding_column IS NULL THEN
        documents := format('%s s JOIN %s d ON d.%I = s.key',
            _side_table(_reranker.name, _reranker.generation), _reranker.source, _reranker.key_column);
    END IF;
    IF _exact OR (_reranker.candidates > 1000 AND NOT before ? 'hnsw.iterative_scan') THEN
        measure.distance := measure.distance || ' + 0';
    END IF;
    EXECUTE format($sql$
        WITH nearest AS MATERIALIZED (
            SELECT d.%1$I AS key, %2$s AS distance FROM %3$s ORDER BY %2$s LIMIT $2)
        SELECT array_agg(('recall', n.key, n.score, n.rank)::scored ORDER BY n.rank)
        FROM (
            SELECT n.key, %4$s AS score, row_number() OVER (ORDER BY n.distance, n.key) AS rank
            FROM nearest n) n
        $sql$, _reranker.key_column, measure.distance,
        format('%s WHERE %s IS NOT NULL AND %s', documents, measure.embedding, _predicate), measure.score)
    INTO recalled USING _embedding, _reranker.candidates;
    PERFORM set_config(b.key, b.value, true) FROM jsonb_each_text(before) b;
    RETURN recalled;
END
$$;

-- The caller's own candidates in the caller's order: those that exist, are visible and pass the filter. Their scores
-- are the caller's, or else those by the query's embedding where there is one.
CREATE OR REPLACE FUNCTION _recall_by_keys(_reranker rerankers, _call search_call, _predicate text) RETURNS scored[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    documents text := format('%s d ON d.%I = k.key', _reranker.source, _reranker.key_column);
    distance text := 'NULL';
    score text := 'n.given::real';
    recalled scored[];
BEGIN
    IF _call.key_scores IS NULL AND _call.query_embedding IS NOT NULL THEN
        SELECT m.distance, m.score INTO distance, score FROM _distance_sql(_reranker) m;
        IF _reranker.embedding_column IS NULL THEN
            documents := format('%s LEFT JOIN %s s ON s.key = k.key',
                documents, _side_table(_reranker.name, _reranker.generation));
        END IF;
    END IF;
    EXECUTE format($sql$
        SELECT array_agg(('recall', n.key, n.score, n.rank)::scored ORDER BY n.rank)
        FROM (
            SELECT n.key, %4$s AS score, row_number() OVER (ORDER BY n.place) AS rank
            FROM (
                SELECT k.key, k.place, k.score AS given, %3$s AS distance
                FROM (
                    SELECT u.key, min(u.place) AS place, (array_agg(u.score ORDER BY u.place))[1] AS score
                    FROM unnest($2::%1$s[], $3) WITH ORDINALITY u (key, score, place) GROUP BY u.key) k
                JOIN %2$s) n) n
        $sql$, _reranker.key_type, format('%s WHERE %s', documents, _predicate), distance, score)
    INTO recalled USING _call.query_embedding, _call.keys, _call.key_scores;
    RETURN recalled;
END
$$;

-- Recall without a query vector: the documents that share most words with the query. It keeps search answering
-- while no worker does.
CREATE OR REPLACE FUNCTION _recall_by_words(_reranker rerankers, _query text, _predicate text) RETURNS scored[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    words tsquery := (
        SELECT string_agg(quote_literal(w), ' | ')::tsquery
        FROM unnest(tsvector_to_array(to_tsvector(_reranker.text_search_config, left(_query, _longest_query())))) w);
    recalled scored[];
BEGIN
    EXECUTE format($sql$
        SELECT array_agg(('recall', b.key, b.score, b.rank)::scored ORDER BY b.rank)
        FROM (
            SELECT b.key, b.score, row_number() OVER (ORDER BY b.score DESC, b.key) AS rank
            FROM (
                SELECT s.key, ts_rank_cd(s.lexemes, $1, 1) AS score
                FROM %1$s s JOIN %2$s d ON d.%3$I = s.key
                WHERE s.lexemes @@ $1 AND %4$s
                ORDER BY score DESC LIMIT $2) b) b
        $sql$, _side_table(_reranker.name, _reranker.generation), _reranker.source, _reranker.key_column, _predicate)
    INTO recalled USING words, _reranker.candidates;
    RETURN recalled;
END
$$;
