-- The MaxSim stages, by the native kernel where the server has it, else by the worker; and MaxSim for those who call it
-- themselves.

-- MaxSim of documents' passages over one tier of their token vectors.
CREATE OR REPLACE FUNCTION _maxsim_of_tier(
    _tier text, _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    token_table text := _side_table(_generation, _tier);
    wanted record := _passages_to_score(_reranker, _generation, _call, _keys);
    chosen record;
BEGIN
    SELECT * INTO keys, scores, passages
    FROM _maxsim_of(token_table, _reranker.key_type, wanted.whole, NULL, _call.query_tokens, _deadline);
    IF wanted.keys IS NOT NULL THEN
        chosen := _maxsim_of(
            token_table, _reranker.key_type, wanted.keys, wanted.passages, _call.query_tokens, _deadline);
        keys := keys || chosen.keys;
        scores := scores || chosen.scores;
        passages := passages || chosen.passages;
    END IF;
END
$$;

-- What is to be scored of documents: all passages of most, by their keys; of one with many, the nearest to the query by
-- their embeddings or, where there are none, those with the lowest numbers.
CREATE OR REPLACE FUNCTION _passages_to_score(
    _reranker rerankers, _generation generations, _call search_call, _keys text[],
    OUT whole text[], OUT keys text[], OUT passages int[])
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    long text[];
    standing text := '$1 IS NULL, s.passage';
BEGIN
    EXECUTE format('SELECT array_agg(DISTINCT s.key::text) FROM %s s WHERE s.key = ANY ($1::%s[]) AND s.passage > $2',
        _side_table(_generation, 'passages'), _reranker.key_type)
    INTO long USING _keys, _most_passages();
    whole := CASE WHEN long IS NULL THEN _keys
        ELSE ARRAY(SELECT k.key FROM unnest(_keys) k (key) WHERE k.key <> ALL (long)) END;
    IF long IS NOT NULL THEN
        IF _reranker.embedding_column IS NULL AND _call.query_embedding IS NOT NULL THEN
            standing := (_distance_sql(_reranker)).distance || ', s.passage';
        END IF;
        EXECUTE format($sql$
            SELECT array_agg(n.key::text), array_agg(n.passage)
            FROM (
                SELECT s.key, s.passage, row_number() OVER (PARTITION BY s.key ORDER BY %s) AS place
                FROM %s s WHERE s.key = ANY ($2::%s[])) n
            WHERE n.place <= $3
            $sql$, standing, _side_table(_generation, 'passages'), _reranker.key_type)
        INTO keys, passages USING _call.query_embedding, long, _most_passages();
    END IF;
END
$$;

-- MaxSim of documents by their keys, of all their passages or of the one beside each key. The kernel scores as many at
-- a time as take some 20 ms, by those before, for they may have to be read from a disk, and heeds the deadline in
-- between.
CREATE OR REPLACE FUNCTION _maxsim_of(
    _token_table text, _key_type text, _keys text[], _passages int[], _query bytea, _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    size int := 64;
    done int := 0;
    started timestamptz;
    part record;
BEGIN
    IF NOT has_native_kernel() THEN
        SELECT * INTO keys, scores, passages
        FROM _maxsim_by_worker(_token_table, _key_type, _keys, _passages, _query, _deadline);
        RETURN;
    END IF;
    WHILE done < cardinality(_keys) LOOP
        PERFORM _check_deadline(_deadline, 'all documents were scored by MaxSim');
        started := clock_timestamp();
        part := _maxsim_by_kernel(
            _token_table, _key_type, _keys[done + 1:done + size], _passages[done + 1:done + size], _query);
        keys := keys || part.keys;
        scores := scores || part.scores;
        passages := passages || part.passages;
        done := done + size;
        size := least(greatest(20 * size / greatest(_milliseconds(started), 1), 16), 10000);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION _score_maxsim(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT s.* FROM _maxsim_of_tier('tokens', _reranker, _generation, _call, _keys, _deadline) s $$;

CREATE OR REPLACE FUNCTION _score_maxsim_bit(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT s.* FROM _maxsim_of_tier('bits', _reranker, _generation, _call, _keys, _deadline) s $$;

-- A query for an aggregate over the parts t of each passage: of all passages of the documents in $1 or, where numbers
-- are given, of those in $3 beside these. The planner estimates every element of an array that it sees, hence it is
-- hidden in a subquery.
CREATE OR REPLACE FUNCTION _each_passage_sql(_token_table text, _key_type text, _passages int[], _aggregate text)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format(CASE WHEN _passages IS NULL THEN 'SELECT t.key, t.passage, %1$s FROM %2$s t '
            'WHERE t.key = ANY ((SELECT $1)::%3$s[]) AND $3 IS NULL GROUP BY t.key, t.passage'
        ELSE 'SELECT w.key::%3$s, w.passage, s.* FROM unnest((SELECT $1), $3) w (key, passage), LATERAL ('
            'SELECT %1$s FROM %2$s t WHERE (t.key, t.passage) = (w.key::%3$s, w.passage) HAVING count(*) > 0) s' END,
        _aggregate, _token_table, _key_type)
$$;

-- One set-based statement over the parts of passages. A malformed one ends the stage, not the search. The index yields
-- parts in the order of keys; after a bitmap they would be sorted, hence copied.
CREATE OR REPLACE FUNCTION _maxsim_by_kernel(
    _token_table text, _key_type text, _keys text[], _passages int[], _query bytea,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_bitmapscan = off
AS $$
BEGIN
    EXECUTE format('SELECT array_agg(p.key::text), array_agg(p.score), array_agg(p.passage) FROM (%s) p',
        _each_passage_sql(_token_table, _key_type, _passages, 'maxsim_agg($2, t.tokens) AS score'))
    INTO keys, scores, passages USING _keys, _query, _passages;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('PGR03', format('MaxSim of %s: %s', _token_table, SQLERRM));
END
$$;

-- Token matrices go over to the worker in batches of some 16 MiB, written as 32 MiB of hexadecimal: an eighth of the
-- longest message that it takes. Scores come back.
CREATE OR REPLACE FUNCTION _maxsim_by_worker(
    _token_table text, _key_type text, _keys text[], _passages int[], _query bytea, _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    batch record;
    request text;
BEGIN
    keys := '{}';
    scores := '{}';
    passages := '{}';
    FOR batch IN EXECUTE format($sql$
        SELECT array_agg(b.key::text) AS keys, array_agg(b.passage) AS passages
        FROM (
            SELECT p.*, (sum(p.bytes) OVER (ORDER BY p.key, p.passage))::bigint / 16777216 AS batch FROM (%s) p
            WHERE $2 IS NULL) b
        GROUP BY b.batch
        $sql$, _each_passage_sql(_token_table, _key_type, _passages, 'sum(octet_length(t.tokens)) AS bytes'))
        USING _keys, NULL::text, _passages
    LOOP
        -- Hexadecimal goes into JSON as it is; json_build_object would look through megabytes for what to escape.
        EXECUTE format($sql$
            SELECT concat('{"call": "maxsim", "query": "', encode($2, 'hex'), '", "documents": ["',
                string_agg(p.tokens, '","' ORDER BY b.place), '"]}')
            FROM unnest($1, $3) WITH ORDINALITY b (key, passage, place)
            JOIN (%s) p ON (p.key, p.passage) = (b.key::%s, b.passage)
            $sql$, _each_passage_sql(_token_table, _key_type, batch.passages,
                $agg$string_agg(encode(t.tokens, 'hex'), '' ORDER BY t.part) AS tokens$agg$), _key_type)
        INTO request USING batch.keys, _query, batch.passages;
        scores := scores || _scores(_ask_worker(request, _deadline), cardinality(batch.keys));
        keys := keys || batch.keys;
        passages := passages || batch.passages;
    END LOOP;
END
$$;

-- Sum over the query's vectors of the largest inner product with any of the document's (Khattab and Zaharia 2020,
-- https://arxiv.org/abs/2004.12832). NULL where either side has no vectors. The kernel brings a faster body.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank_native') THEN
        CREATE OR REPLACE FUNCTION maxsim(query vector[], document vector[]) RETURNS real
        LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 10000
        SET search_path FROM CURRENT
        AS $maxsim$
            SELECT sum(best)::real FROM (
                SELECT max(-(q.v <#> d.v)) AS best
                FROM unnest(query) WITH ORDINALITY q (v, i) CROSS JOIN unnest(document) d (v)
                GROUP BY q.i) scores
        $maxsim$;
        COMMENT ON FUNCTION maxsim(vector[], vector[]) IS 'MaxSim of a query''s and a document''s token vectors';
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION has_native_kernel() RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT to_regprocedure('pgrerank.maxsim_agg(bytea, bytea)') IS NOT NULL $$;
COMMENT ON FUNCTION has_native_kernel IS 'Whether MaxSim is scored by the native kernel in this database';
