-- Queue to side table: what a worker calls. It claims, encodes outside of any transaction, and stores.

-- Claims documents of one generation. Most claims are many documents that were never tried; one that was tried before
-- comes alone, so that a document which kills workers takes no other with it. A claim ends with its lease or with
-- the session that made it. Documents that have gone or whose text is the one encoded come back as settled. The models
-- say what is to be stored; no embedding where the user keeps one.
CREATE OR REPLACE FUNCTION claim(max_documents int DEFAULT 64, only_reranker text DEFAULT NULL, max_attempts int DEFAULT 3, lease interval DEFAULT '10 minutes')
RETURNS TABLE (
    reranker text, generation int, key text, ticket bigint, content text, content_hash bytea, settled boolean,
    embedding_model text, late_interaction_model text, token_precision text, token_dims int, token_pool int, token_bits boolean, projection text
)
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    alive int[] := ARRAY(SELECT a.pid FROM pg_stat_activity a WHERE a.datname = current_database());
    first pending;
    r rerankers;
    g generations;
    keys text[];
    tickets bigint[];
BEGIN
    UPDATE pending p SET failed_at = now(), last_error = format('no worker survived encoding it, %s times', p.attempts), claimed_by = NULL
    WHERE p.failed_at IS NULL AND p.attempts >= max_attempts AND (p.claimed_by <> ALL (alive) OR p.claimed_until < now());

    SELECT * INTO first FROM pending p
    WHERE p.failed_at IS NULL AND (only_reranker IS NULL OR p.reranker = only_reranker)
      AND (p.claimed_by IS NULL OR p.claimed_by <> ALL (alive) OR p.claimed_until < now())
    ORDER BY p.ticket LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM _switch_when_complete(x.name) FROM rerankers x WHERE only_reranker IS NULL OR x.name = only_reranker;
        PERFORM forget_searches();
        RETURN;
    END IF;

    WITH chosen AS (
        SELECT p.ctid FROM pending p
        WHERE (p.reranker, p.generation) = (first.reranker, first.generation) AND p.failed_at IS NULL
          AND (p.claimed_by IS NULL OR p.claimed_by <> ALL (alive) OR p.claimed_until < now())
          AND CASE WHEN first.attempts > 0 THEN p.key = first.key ELSE p.attempts = 0 END
        ORDER BY p.ticket LIMIT max_documents FOR UPDATE SKIP LOCKED),
    claimed AS (
        UPDATE pending p SET claimed_by = pg_backend_pid(), claimed_until = now() + lease, attempts = p.attempts + 1
        FROM chosen WHERE p.ctid = chosen.ctid RETURNING p.key, p.ticket)
    SELECT array_agg(c.key ORDER BY c.ticket), array_agg(c.ticket ORDER BY c.ticket) INTO keys, tickets FROM claimed c;

    r := _reranker(first.reranker);
    SELECT * INTO g FROM generations x WHERE (x.reranker, x.number) = (first.reranker, first.generation);
    RETURN QUERY EXECUTE format(
        'WITH d AS MATERIALIZED (SELECT %1$I AS key, (%2$s) AS content FROM %3$s WHERE %1$I = ANY ($1::%4$s[])) '
        'SELECT $3, $4, c.key, c.ticket, d.content, _content_hash(d.content), '
        'd.key IS NULL OR s.content_hash IS NOT DISTINCT FROM _content_hash(d.content), $5, $6, $7, $8, $9, $10, $11 '
        'FROM unnest($1, $2) c (key, ticket) LEFT JOIN d ON d.key = c.key::%4$s LEFT JOIN %5$s s ON s.key = d.key',
        r.key_column, g.text_expression, r.source, r.key_type, _side(r.name, g.number))
    USING keys, tickets, r.name, g.number,
        CASE WHEN r.embedding_column IS NULL THEN g.embedding_model END, g.late_interaction_model,
        g.token_precision, g.token_dims, g.token_pool, g.token_bits, g.projection;
END
$$;
COMMENT ON FUNCTION claim IS 'Claims pending documents for the calling worker session';

-- How many documents a projection is fitted on: some ten thousand token vectors.
CREATE OR REPLACE FUNCTION _sample_size() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 256 $$;

-- Texts of the source at random, to fit a projection on.
CREATE OR REPLACE FUNCTION sample_texts(reranker text, generation int) RETURNS SETOF text
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    r rerankers := _reranker(sample_texts.reranker);
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT d.content FROM (SELECT %1$I AS key FROM %2$s ORDER BY random() LIMIT $1) k '
        'JOIN (SELECT %1$I AS key, (%3$s) AS content FROM %2$s) d USING (key) WHERE d.content ~ ''\S''', r.key_column, r.source,
        (SELECT g.text_expression FROM generations g WHERE (g.reranker, g.number) = (r.name, sample_texts.generation)))
    USING _sample_size();
END
$$;
COMMENT ON FUNCTION sample_texts IS 'Texts of a reranker''s source at random';

-- Keeps the projection fitted first, and returns the generation's: all its token vectors go by that one.
-- NULL when the generation has gone.
CREATE OR REPLACE FUNCTION keep_projection(reranker text, generation int, matrix bytea, documents int) RETURNS bytea
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    kept projections;
BEGIN
    UPDATE generations g SET projection = md5(keep_projection.matrix)
    WHERE (g.reranker, g.number) = (keep_projection.reranker, keep_projection.generation) AND g.projection IS NULL;
    IF FOUND THEN
        INSERT INTO projections VALUES (keep_projection.reranker, keep_projection.generation, keep_projection.matrix, keep_projection.documents);
    END IF;
    SELECT * INTO kept FROM projections p WHERE (p.reranker, p.generation) = (keep_projection.reranker, keep_projection.generation);
    RETURN kept.matrix;
END
$$;
COMMENT ON FUNCTION keep_projection IS 'Gives a generation its projection, unless it has one; returns the one it has';

-- Stores the vectors of claimed documents (none for those with nothing to encode) and settles their claims. Arrays of one
-- length go together: an embedding is written '[…]'; token vectors are packed in parts, whose keys stand beside them in the
-- parts' order, bits likewise. A document that has gone meanwhile is left out; one that has changed has a new ticket and
-- stays pending.
CREATE OR REPLACE FUNCTION store(
    reranker text, generation int, keys text[], tickets bigint[], hashes bytea[], embeddings text[],
    token_keys text[] DEFAULT '{}', tokens bytea[] DEFAULT '{}', bit_keys text[] DEFAULT '{}', bits bytea[] DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    r rerankers;
    g generations;
    stored text[];
BEGIN
    SELECT * INTO g FROM generations x WHERE (x.reranker, x.number) = (store.reranker, store.generation);
    IF NOT FOUND THEN
        RETURN;  -- dropped while its documents were being encoded
    END IF;
    r := _reranker(store.reranker);
    EXECUTE format(
        'WITH alive AS MATERIALIZED ('
        '  SELECT %1$I AS key, (%2$s) AS content FROM %3$s source WHERE %1$I = ANY ($1::%4$s[]) FOR KEY SHARE OF source), '
        'stored AS (INSERT INTO %5$s AS s (key, embedding, lexemes, content_hash) '
        'SELECT alive.key, d.embedding::halfvec, to_tsvector(%6$L, left(alive.content, 200000)), d.hash '
        'FROM unnest($1, $2, $3) d (key, embedding, hash) JOIN alive ON alive.key = d.key::%4$s '
        'ON CONFLICT (key) DO UPDATE SET embedding = excluded.embedding, lexemes = excluded.lexemes, '
        'content_hash = excluded.content_hash, encoded_at = now() RETURNING s.key) SELECT array_agg(key::text) FROM stored',
        r.key_column, g.text_expression, r.source, r.key_type, _side(r.name, g.number), r.text_search_config)
    INTO stored USING keys, embeddings, hashes;
    PERFORM _store_parts(r, g, 'tokens', stored, token_keys, store.tokens);
    IF g.token_bits THEN
        PERFORM _store_parts(r, g, 'bits', stored, bit_keys, bits);
    END IF;
    PERFORM settle(store.reranker, store.generation, keys, tickets);
END
$$;
COMMENT ON FUNCTION store IS 'Stores the vectors of claimed documents and settles their claims';

-- Replaces the parts of the documents just stored.
CREATE OR REPLACE FUNCTION _store_parts(r rerankers, g generations, tier text, stored text[], keys text[], tokens bytea[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    parts text := _parts(r.name, g.number, tier);
BEGIN
    EXECUTE format('DELETE FROM %s WHERE key = ANY ($1::%s[])', parts, r.key_type) USING stored;
    EXECUTE format(
        'INSERT INTO %s (key, part, tokens) SELECT key::%s, row_number() OVER (PARTITION BY key ORDER BY i), tokens '
        'FROM unnest($2, $3) WITH ORDINALITY u (key, tokens, i) WHERE key = ANY ($1)', parts, r.key_type) USING stored, keys, tokens;
END
$$;

-- Takes claimed documents off the queue. When a new generation has nothing left to do it takes over.
CREATE OR REPLACE FUNCTION settle(reranker text, generation int, keys text[], tickets bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM pending p USING unnest(keys, tickets) d (key, ticket)
    WHERE p.reranker = settle.reranker AND p.generation = settle.generation AND p.key = d.key AND p.ticket = d.ticket;
    PERFORM _switch_when_complete(settle.reranker);
END
$$;

-- In one transaction: a search sees the old generation or the new, whole. The old one is kept for rollback_reranker.
CREATE OR REPLACE FUNCTION _switch_when_complete(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
#variable_conflict use_column
DECLARE
    newest int := (_newest(reranker)).number;
BEGIN
    PERFORM FROM rerankers r WHERE r.name = _switch_when_complete.reranker AND r.generation < newest FOR UPDATE;
    IF FOUND AND NOT EXISTS (SELECT FROM pending p
        WHERE p.reranker = _switch_when_complete.reranker AND p.generation = newest AND p.failed_at IS NULL) THEN
        UPDATE rerankers r SET generation = newest WHERE r.name = _switch_when_complete.reranker;
        UPDATE generations g SET retired_at = now() WHERE g.reranker = _switch_when_complete.reranker AND g.number < newest;
    END IF;
    PERFORM _drop_retired(reranker);
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

-- Searches hold their generation until their transaction ends. Waiting for one would make all new ones wait behind
-- us, so give up soon; whoever next finds the queue empty tries again.
CREATE OR REPLACE FUNCTION _drop_retired(reranker text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM generations g USING rerankers r
    WHERE g.reranker = _drop_retired.reranker AND r.name = g.reranker AND g.retired_at + r.grace_period <= clock_timestamp();
    IF FOUND THEN
        PERFORM _drop_stale_sides(reranker);
    END IF;
EXCEPTION WHEN lock_not_available THEN
    RETURN;
END
$$;

-- Gives a claimed document back, to be tried again after the others, or puts it aside after max_attempts tries.
CREATE OR REPLACE FUNCTION fail(reranker text, generation int, key text, ticket bigint, error text, max_attempts int DEFAULT 3) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    UPDATE pending p SET claimed_by = NULL, claimed_until = NULL, last_error = left(error, 1000),
        ticket = DEFAULT, failed_at = CASE WHEN p.attempts >= max_attempts THEN now() END
    WHERE p.reranker = fail.reranker AND p.generation = fail.generation AND p.key = fail.key AND p.ticket = fail.ticket
$$;

-- Gives back what this session has claimed and not settled, as if it had never been tried: the fault, if any, is not the
-- documents' (a model can't be loaded, say), but status shall show it.
CREATE OR REPLACE FUNCTION release(error text DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    UPDATE pending p SET claimed_by = NULL, claimed_until = NULL, attempts = p.attempts - 1, last_error = coalesce(left(error, 1000), p.last_error)
    WHERE p.claimed_by = pg_backend_pid() AND p.failed_at IS NULL
$$;
