-- The call itself, and the typed function that each reranker gets in front of it.

-- The stages of a call: those asked for, or all that the reranker has models and this call has input for.
CREATE OR REPLACE FUNCTION _stages(r rerankers, stages text[], has_text boolean, has_tokens boolean) RETURNS text[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    g generations := (SELECT x FROM generations x WHERE (x.reranker, x.number) = (r.name, r.generation));
    has_query boolean := g.late_interaction_model IS NOT NULL AND (has_text OR has_tokens);
    possible text[] := ARRAY['recall']
        || CASE WHEN has_query AND g.token_bits THEN ARRAY['maxsim_bit'] ELSE '{}' END
        || CASE WHEN has_query THEN ARRAY['maxsim'] ELSE '{}' END
        || CASE WHEN r.cross_encoder_model IS NOT NULL AND has_text THEN ARRAY['cross_encoder'] ELSE '{}' END;
BEGIN
    IF NOT coalesce(stages, '{}') <@ possible THEN
        PERFORM _fail('invalid_parameter_value', format('stages %s can''t all run: possible here are %s', stages, possible),
            'maxsim wants a late_interaction_model and a query text or query_tokens, maxsim_bit also a maxsim_bit_top; cross_encoder wants a cross_encoder_model and a query text.');
    END IF;
    RETURN coalesce(stages, possible);
END
$$;

-- The reranker's settings, and its side table held: a new generation that takes over meanwhile waits with dropping the
-- old one until the caller's transaction ends. One that took over in between is read once more.
CREATE OR REPLACE FUNCTION _settled(name text) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(name);
BEGIN
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', _side(r.name, r.generation));
    EXCEPTION WHEN undefined_table THEN
        r := _reranker(name);
    END;
    RETURN r;
END
$$;

-- Milliseconds since then.
CREATE OR REPLACE FUNCTION _ms(since timestamptz) RETURNS numeric
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT round(1000 * extract(epoch FROM clock_timestamp() - since), 3) $$;

-- The first candidates of a pool as a search returns them.
CREATE OR REPLACE FUNCTION _rows(pool candidate[], first_stage text, reason text, top_k int) RETURNS TABLE (
    key text, score real, rank int, stage text, degraded boolean, reason text,
    recall_score real, recall_rank int, maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int,
    cross_encoder_score real, cross_encoder_rank int
)
LANGUAGE sql IMMUTABLE ROWS 10
SET search_path FROM CURRENT
AS $$
    SELECT c.key, coalesce(c.blended_score, c.cross_encoder_score, c.maxsim_score, c.maxsim_bit_score, c.recall_score), c.place::int,
        CASE WHEN c.cross_encoder_rank IS NOT NULL THEN 'cross_encoder' WHEN c.maxsim_rank IS NOT NULL THEN 'maxsim'
             WHEN c.maxsim_bit_rank IS NOT NULL THEN 'maxsim_bit' ELSE $2 END,
        $3 IS NOT NULL, $3,
        c.recall_score, c.recall_rank, c.maxsim_bit_score, c.maxsim_bit_rank, c.maxsim_score, c.maxsim_rank,
        c.cross_encoder_score, c.cross_encoder_rank
    FROM unnest($1) WITH ORDINALITY c (
        key, recall_score, recall_rank, maxsim_bit_score, maxsim_bit_rank, maxsim_score, maxsim_rank, cross_encoder_score, cross_encoder_rank, blended_score, place)
    ORDER BY c.place LIMIT $4
$$;

-- All that a call does: the pool in its last order, what made it, why it is degraded, and the milliseconds of each stage.
CREATE OR REPLACE FUNCTION _run(
    r rerankers, query text, top_k int, filter jsonb, stages text[], keys text[], query_embedding vector, query_tokens bytea, recall text, strict boolean,
    OUT pool candidate[], OUT first_stage text, OUT reason text, OUT times jsonb)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    started timestamptz := clock_timestamp();
    deadline timestamptz;
    mark timestamptz;
    wants_tokens boolean;
    predicate text;
    encoding numeric := 0;
BEGIN
    first_stage := 'recall';
    times := '{}';
    PERFORM _check_call(r, query, top_k, keys, query_embedding, recall);
    PERFORM _check_query_tokens(r, query_tokens);
    PERFORM _check_settings(r);
    stages := _stages(r, stages, query IS NOT NULL, query_tokens IS NOT NULL);
    wants_tokens := stages && '{maxsim_bit,maxsim}';
    predicate := _filter_sql(r.source, filter);
    deadline := started + r.timeout;
    BEGIN
        IF keys IS NULL AND query_embedding IS NULL THEN
            mark := clock_timestamp();
            SELECT * INTO query_embedding, query_tokens
            FROM _encode_query(r, query, query_embedding, query_tokens, true, wants_tokens, deadline);
            encoding := _ms(mark);
        END IF;
        mark := clock_timestamp();
        IF keys IS NOT NULL THEN
            pool := _given(r, keys, predicate);
        ELSE
            pool := _recall(r, query_embedding, predicate, r.candidates, recall = 'exact');
        END IF;
        times := jsonb_build_object('recall', _ms(mark));
        IF wants_tokens AND pool <> '{}' THEN
            mark := clock_timestamp();
            query_tokens := (_encode_query(r, query, NULL, query_tokens, false, true, deadline)).tokens;
            encoding := encoding + _ms(mark);
        END IF;
        IF 'maxsim_bit' = ANY (stages) AND pool <> '{}' THEN
            mark := clock_timestamp();
            pool := _maxsim(r, pool, 'maxsim_bit', NULL, query_tokens, deadline);
            times := times || jsonb_build_object('maxsim_bit', _ms(mark));
        END IF;
        IF 'maxsim' = ANY (stages) AND pool <> '{}' THEN
            mark := clock_timestamp();
            pool := _maxsim(r, pool, 'maxsim', CASE WHEN 'maxsim_bit' = ANY (stages) THEN r.maxsim_bit_top END, query_tokens, deadline);
            times := times || jsonb_build_object('maxsim', _ms(mark));
        END IF;
        IF 'cross_encoder' = ANY (stages) AND pool <> '{}' THEN
            mark := clock_timestamp();
            pool := _cross_encode(r, pool, query, r.maxsim_top, deadline);
            times := times || jsonb_build_object('cross_encoder', _ms(mark));
        END IF;
    EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
        IF strict THEN
            RAISE;
        END IF;
        reason := SQLERRM;
    END;
    IF pool IS NULL AND reason IS NOT NULL THEN
        first_stage := 'fulltext';
        pool := _recall_fulltext(r, query, predicate, r.candidates);
        IF pool IS NULL THEN
            RAISE WARNING 'pgrerank: no document found: %', reason;
        END IF;
    END IF;
    times := times || jsonb_build_object('encode_query', encoding, 'total', _ms(started));
END
$$;

-- The reranker as a call wants it.
CREATE OR REPLACE FUNCTION _for_call(reranker text, top_k int, candidates int, maxsim_bit_top int, maxsim_top int, timeout interval) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _settled(reranker);
BEGIN
    r.candidates := greatest(coalesce(candidates, r.candidates), top_k);
    r.maxsim_bit_top := coalesce(maxsim_bit_top, r.maxsim_bit_top);
    r.maxsim_top := coalesce(maxsim_top, r.maxsim_top);
    r.timeout := coalesce(timeout, r.timeout);
    RETURN r;
END
$$;

CREATE OR REPLACE FUNCTION _search(
    reranker text, query text, top_k int, filter jsonb, candidates int, maxsim_bit_top int, maxsim_top int, stages text[], keys text[],
    query_embedding vector, query_tokens bytea, recall text, timeout interval, strict boolean
) RETURNS TABLE (
    key text, score real, rank int, stage text, degraded boolean, reason text,
    recall_score real, recall_rank int, maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int,
    cross_encoder_score real, cross_encoder_rank int
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _for_call(reranker, top_k, candidates, maxsim_bit_top, maxsim_top, timeout);
    pool candidate[];
    first_stage text;
    times jsonb;
BEGIN
    SELECT * INTO pool, first_stage, reason, times
    FROM _run(r, query, top_k, filter, stages, keys, query_embedding, query_tokens, recall, strict);
    IF r.log_sample > 0 AND keys IS NULL AND query_embedding IS NULL AND query_tokens IS NULL THEN
        PERFORM _log_search(r, query, jsonb_build_object('top_k', top_k, 'filter', filter, 'candidates', candidates, 'maxsim_bit_top', maxsim_bit_top,
            'maxsim_top', maxsim_top, 'stages', stages, 'recall', nullif(recall, 'hnsw'), 'timeout', timeout), top_k, pool, first_stage, reason, times);
    END IF;
    RETURN QUERY SELECT * FROM _rows(pool, first_stage, reason, top_k);
END
$$;

-- What a call must bring.
CREATE OR REPLACE FUNCTION _check_call(r rerankers, query text, top_k int, keys text[], query_embedding vector, recall text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    dims int;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = r.source) THEN
        PERFORM _fail('undefined_table', format('the source table of reranker "%s" has been dropped', r.name),
            format('Call pgrerank.drop_reranker(%L).', r.name));
    ELSIF keys IS NULL AND query_embedding IS NULL AND coalesce(btrim(query), '') = '' THEN
        PERFORM _fail('invalid_parameter_value', 'nothing to search for: give a query, keys or query_embedding');
    ELSIF top_k IS NULL OR top_k NOT BETWEEN 1 AND 100000 THEN
        PERFORM _fail('invalid_parameter_value', format('top_k is %s, wanted 1 to 100000', coalesce(top_k::text, 'NULL')));
    ELSIF cardinality(keys) > 100000 THEN
        PERFORM _fail('invalid_parameter_value', format('keys has %s elements, wanted up to 100000', cardinality(keys)));
    ELSIF recall IS NULL OR recall NOT IN ('hnsw', 'exact') THEN
        PERFORM _fail('invalid_parameter_value', format('recall is %L, wanted hnsw or exact', recall));
    ELSIF query_embedding IS NOT NULL THEN
        dims := CASE WHEN r.embedding_column IS NOT NULL THEN (_embedding_column(r.source, r.embedding_column)).dims ELSE (
            SELECT m.dims FROM generations g JOIN models m ON m.name = g.embedding_model WHERE (g.reranker, g.number) = (r.name, r.generation)) END;
        IF dims <> vector_dims(query_embedding) THEN
            PERFORM _fail('data_exception', format('query_embedding: expected %s dimensions, not %s', dims, vector_dims(query_embedding)));
        END IF;
    END IF;
END
$$;

-- Given token vectors begin as packed ones do, and have the stored ones' dimensions; whoever scores them reads the rest.
CREATE OR REPLACE FUNCTION _check_query_tokens(r rerankers, query_tokens bytea) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    stored record;
    given int;
BEGIN
    IF query_tokens IS NULL THEN
        RETURN;
    ELSIF octet_length(query_tokens) < 16 OR substring(query_tokens FOR 4) <> 'pgrt' THEN
        PERFORM _fail('data_exception', 'query_tokens are not packed token vectors', 'pgrerank.tokens.pack makes them.');
    END IF;
    SELECT g.token_dims, coalesce(g.token_dims, m.dims) AS dims INTO stored
    FROM generations g JOIN models m ON m.name = g.late_interaction_model WHERE (g.reranker, g.number) = (r.name, r.generation);
    given := get_byte(query_tokens, 6) + 256 * get_byte(query_tokens, 7);
    IF given <> stored.dims THEN
        PERFORM _fail('data_exception', format('query_tokens: expected %s dimensions, not %s', stored.dims, given),
            CASE WHEN stored.token_dims IS NOT NULL THEN 'They want the projection in pgrerank.projections, as documents have it.' END);
    END IF;
END
$$;

-- pgrerank.NAME_search(...), typed by the source's own key and naming it as the source does.
CREATE OR REPLACE FUNCTION _create_search(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(reranker);
    taken text[] := '{query,top_k,filter,candidates,maxsim_bit_top,maxsim_top,stages,keys,query_embedding,query_tokens,recall,timeout,strict,score,rank,stage,degraded,reason,recall_score,recall_rank,maxsim_bit_score,maxsim_bit_rank,maxsim_score,maxsim_rank,cross_encoder_score,cross_encoder_rank}';
    signature text;
BEGIN
    EXECUTE format($create$
        CREATE FUNCTION pgrerank.%1$I(
            query text, top_k int DEFAULT 10, filter jsonb DEFAULT NULL, candidates int DEFAULT NULL, maxsim_bit_top int DEFAULT NULL,
            maxsim_top int DEFAULT NULL, stages text[] DEFAULT NULL, keys %2$s[] DEFAULT NULL, query_embedding vector DEFAULT NULL, query_tokens bytea DEFAULT NULL,
            recall text DEFAULT 'hnsw', timeout interval DEFAULT NULL, strict boolean DEFAULT false)
        RETURNS TABLE (
            %3$I %2$s, score real, rank int, stage text, degraded boolean, reason text, recall_score real, recall_rank int,
            maxsim_bit_score real, maxsim_bit_rank int, maxsim_score real, maxsim_rank int, cross_encoder_score real, cross_encoder_rank int)
        LANGUAGE sql VOLATILE ROWS 10
        SET search_path FROM CURRENT
        AS $body$
            SELECT s.key::%2$s, s.score, s.rank, s.stage, s.degraded, s.reason, s.recall_score, s.recall_rank,
                s.maxsim_bit_score, s.maxsim_bit_rank, s.maxsim_score, s.maxsim_rank, s.cross_encoder_score, s.cross_encoder_rank
            FROM pgrerank._search(%4$L, $1, $2, $3, $4, $5, $6, $7, $8::text[], $9, $10, $11, $12, $13) s
        $body$ $create$,
        r.name || '_search', r.key_type, CASE WHEN r.key_column = ANY (taken) THEN 'key' ELSE r.key_column END, r.name);
    EXECUTE format('COMMENT ON FUNCTION pgrerank.%I IS %L', r.name || '_search', format('Searches %s by reranker %s', r.source, r.name));
END
$$;
