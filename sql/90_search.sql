-- Search: a pool of candidates goes through the stages recall, maxsim_bit, maxsim, cross_encoder; each adds its score and
-- rank. Here are those that make a pool or settle it, 91 has MaxSim.
-- All SECURITY INVOKER: the caller's grants and row-level security decide what is read.

DO $$
BEGIN
    IF to_regtype('pgrerank.candidate') IS NULL THEN
        CREATE TYPE candidate AS (
            key text,
            recall_score real, recall_rank int,
            maxsim_bit_score real, maxsim_bit_rank int,
            maxsim_score real, maxsim_rank int,
            cross_encoder_score real, cross_encoder_rank int,
            blended_score real
        );
    END IF;
END
$$;
COMMENT ON TYPE candidate IS 'A document in the pool, with the score and rank of every stage that it has passed';

-- Similarity as a score: higher is better, whatever the distance.
CREATE OR REPLACE FUNCTION _distance_sql(distance text, OUT operator text, OUT score text)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE distance WHEN 'cosine' THEN '<=>' WHEN 'inner_product' THEN '<#>' ELSE '<->' END,
           CASE distance WHEN 'cosine' THEN '1 - distance' ELSE '-distance' END
$$;

-- Lets an HNSW scan yield n rows, also through a filter; pgrerank.ef_search, where it is set, says how wide it looks. Returns
-- the settings to go back to.
CREATE OR REPLACE FUNCTION _widen_hnsw(n int) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    wanted jsonb := jsonb_build_object('hnsw.ef_search',
        coalesce(nullif(current_setting('pgrerank.ef_search', true), '')::int, least(greatest(n, 40), 1000)));
    before jsonb;
BEGIN
    PERFORM '[1]'::vector;  -- loads the library, which defines the settings
    IF current_setting('hnsw.iterative_scan', true) IS NOT NULL THEN
        wanted := wanted || jsonb_build_object('hnsw.iterative_scan', 'relaxed_order', 'hnsw.max_scan_tuples', greatest(20000, 20 * n));
    END IF;
    SELECT jsonb_object_agg(w.key, current_setting(w.key)) INTO before FROM jsonb_each_text(wanted) w;
    PERFORM set_config(w.key, w.value, true) FROM jsonb_each_text(wanted) w;
    RETURN before;
END
$$;

-- The n nearest documents. Exact recall orders by an expression that no index serves.
CREATE OR REPLACE FUNCTION _recall(r rerankers, embedding vector, filter text, n int, exact boolean) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    d record := _distance_sql(r.distance);
    type text := 'halfvec';
    pool candidate[];
    before jsonb;
BEGIN
    IF r.embedding_column IS NOT NULL THEN
        type := (_embedding_column(r.source, r.embedding_column)).type;
    END IF;
    before := _widen_hnsw(n);
    EXECUTE format(
        'WITH nearest AS MATERIALIZED (SELECT d.%1$I AS key, %2$s %3$s $1::%4$s AS distance FROM %5$s WHERE %2$s IS NOT NULL AND %6$s '
        'ORDER BY (%2$s %3$s $1::%4$s) %7$s LIMIT $2) '
        'SELECT array_agg((key, score, rank, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
        'SELECT key, (%8$s)::real AS score, row_number() OVER (ORDER BY distance, key) AS rank FROM nearest) ranked',
        r.key_column, coalesce('d.' || quote_ident(r.embedding_column), 's.embedding'), d.operator, type,
        CASE WHEN r.embedding_column IS NULL
             THEN format('%s s JOIN %s d ON d.%I = s.key', _side(r.name, r.generation), r.source, r.key_column)
             ELSE format('%s d', r.source) END,
        filter, CASE WHEN exact OR (n > 1000 AND NOT before ? 'hnsw.iterative_scan') THEN '+ 0' ELSE '' END, d.score)
    INTO pool USING embedding, n;
    PERFORM set_config(b.key, b.value, true) FROM jsonb_each_text(before) b;
    RETURN pool;
END
$$;

-- The caller's own candidates in the caller's order: those that exist, are visible and pass the filter.
CREATE OR REPLACE FUNCTION _given(r rerankers, keys text[], filter text) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    pool candidate[];
BEGIN
    EXECUTE format(
        'SELECT array_agg((key, NULL, rank, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
        'SELECT d.%1$I AS key, row_number() OVER (ORDER BY k.place) AS rank FROM ('
        'SELECT key, min(place) AS place FROM unnest($1::%2$s[]) WITH ORDINALITY u (key, place) GROUP BY key) k '
        'JOIN %3$s d ON d.%1$I = k.key WHERE %4$s) ranked', r.key_column, r.key_type, r.source, filter)
    INTO pool USING keys;
    RETURN pool;
END
$$;

-- Recall without a query vector: the documents that share most words with the query. It keeps search answering
-- while no worker does.
CREATE OR REPLACE FUNCTION _recall_fulltext(r rerankers, query text, filter text, n int) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    words tsquery := (SELECT string_agg(quote_literal(w), ' | ')::tsquery FROM unnest(tsvector_to_array(to_tsvector(r.text_search_config, left(query, 10000)))) w);
    pool candidate[];
BEGIN
    EXECUTE format(
        'SELECT array_agg((key, score, rank, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::candidate ORDER BY rank) FROM ('
        'SELECT key, score, row_number() OVER (ORDER BY score DESC, key) AS rank FROM ('
        'SELECT s.key, ts_rank_cd(s.lexemes, $1, 1) AS score FROM %s s JOIN %s d ON d.%I = s.key WHERE s.lexemes @@ $1 AND %s '
        'ORDER BY score DESC LIMIT $2) best) ranked', _side(r.name, r.generation), r.source, r.key_column, filter)
    INTO pool USING words, n;
    RETURN pool;
END
$$;

-- The documents' texts, as the caller may read them.
CREATE OR REPLACE FUNCTION _texts(r rerankers, keys text[], OUT known text[], OUT texts text[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format(
        'SELECT array_agg(key::text ORDER BY key), array_agg(coalesce(content, '''') ORDER BY key) '
        'FROM (SELECT %1$I AS key, (%2$s) AS content FROM %3$s WHERE %1$I = ANY ($1::%4$s[])) d',
        r.key_column, (SELECT g.text_expression FROM generations g WHERE (g.reranker, g.number) = (r.name, r.generation)), r.source, r.key_type)
    INTO known, texts USING keys;
END
$$;

-- The cross-encoder reads the texts of the first n candidates.
CREATE OR REPLACE FUNCTION _cross_encode(r rerankers, pool candidate[], query text, n int, deadline timestamptz) RETURNS candidate[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    read record := _texts(r, ARRAY(SELECT c.key FROM unnest(pool) c LIMIT n));
BEGIN
    RETURN _rank_by(pool, 'cross_encoder', read.known, _cross_encoded(r.cross_encoder_model, query, read.texts, deadline), r.blend);
END
$$;

CREATE OR REPLACE FUNCTION _cross_encoded(model text, query text, documents text[], deadline timestamptz) RETURNS real[]
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _scores(_call(json_build_object('call', 'cross_encode', 'model', model, 'query', query, 'documents', documents)::text, deadline), cardinality(documents))
$$;

-- For texts that are in no reranker's table.
CREATE OR REPLACE FUNCTION cross_encode(model text, query text, documents text[], timeout interval DEFAULT '1 minute') RETURNS real[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM _model(model, 'cross_encoder');
    IF query IS NULL OR documents IS NULL OR array_position(documents, NULL) IS NOT NULL THEN
        PERFORM _fail('null_value_not_allowed', 'cross_encode: the query, documents or one of them is NULL, texts wanted');
    END IF;
    RETURN CASE WHEN documents = '{}' THEN '{}'::real[] ELSE _cross_encoded(model, query, documents, clock_timestamp() + timeout) END;
END
$$;
COMMENT ON FUNCTION cross_encode IS 'Scores of texts for a query by a registered cross-encoder, in the texts'' order';

-- The query's own vectors from the worker, those that the stages need and the caller has not given.
CREATE OR REPLACE FUNCTION _encode_query(r rerankers, query text, INOUT embedding vector, INOUT tokens bytea, want_embedding boolean, want_tokens boolean, deadline timestamptz)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    g generations;
    answer jsonb;
BEGIN
    want_embedding := want_embedding AND embedding IS NULL;
    want_tokens := want_tokens AND tokens IS NULL;
    IF NOT (want_embedding OR want_tokens) THEN
        RETURN;
    END IF;
    SELECT * INTO g FROM generations x WHERE (x.reranker, x.number) = (r.name, r.generation);
    IF want_embedding AND g.embedding_model IS NULL THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s" has no embedding_model to encode the query with', r.name),
            'Give query_embedding or keys, or name a model by pgrerank.alter_reranker.');
    END IF;
    answer := _call(json_build_object('call', 'encode', 'text', query,
        'embedding', CASE WHEN want_embedding THEN g.embedding_model END,
        'late_interaction', CASE WHEN want_tokens THEN g.late_interaction_model END, 'projection', g.projection)::text, deadline);
    BEGIN
        IF want_embedding THEN
            embedding := (answer -> 'embedding')::text::vector;
        END IF;
        IF want_tokens THEN
            tokens := decode(answer ->> 'tokens', 'hex');
        END IF;
    EXCEPTION WHEN data_exception THEN
        PERFORM _fail('PGR03', format('the worker answered a query vector that is none: %s', SQLERRM));
    END;
    IF want_embedding AND vector_dims(embedding) IS DISTINCT FROM (SELECT m.dims FROM models m WHERE m.name = g.embedding_model)
        OR want_tokens AND tokens IS NULL THEN
        PERFORM _fail('PGR03', format('the worker answered a query vector of %s dimensions, not those of model "%s"', coalesce(vector_dims(embedding)::text, 'no'), g.embedding_model));
    END IF;
END
$$;
