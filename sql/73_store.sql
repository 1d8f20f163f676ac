-- What a worker stores of the documents that it has claimed.

-- Stores passages of claimed documents with their vectors, and finishes those documents whose hash is given. These have
-- stored, now or before, what their bounds say: of each passage its number, its first character and the one after its
-- last, counted from 0; NULL where the whole text is number 1. A long document is stored in several calls, by whoever
-- claims it, and nothing of it is encoded twice.
--
-- Arrays that are named alike go together. A passage's `embedding_place` counts the embeddings, which stand one after
-- the other; it is NULL where there are none. Token vectors are packed in parts, which are numbered from 1; bits
-- likewise. A document that has gone meanwhile is left out, and so is one that has changed, or is locked: it has a new
-- ticket, and stays pending. Where the generation was dropped meanwhile, nothing is stored.
CREATE OR REPLACE FUNCTION store(
    reranker text, generation int, keys text[], tickets bigint[], hashes bytea[], bounds text[] DEFAULT NULL,
    passage_keys text[] DEFAULT '{}', passages int[] DEFAULT '{}', passage_hashes bytea[] DEFAULT '{}',
    cut_hashes bytea[] DEFAULT '{}', embedding_places int[] DEFAULT '{}', embeddings real[] DEFAULT '{}',
    token_keys text[] DEFAULT '{}', token_passages int[] DEFAULT '{}', token_parts int[] DEFAULT '{}',
    tokens bytea[] DEFAULT '{}', bit_keys text[] DEFAULT '{}', bit_passages int[] DEFAULT '{}',
    bit_parts int[] DEFAULT '{}', bits bytea[] DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '500ms' SET datestyle = 'ISO'
    SET timezone = 'UTC'
AS $$
DECLARE
    stored generations := _generation(reranker, generation);
    target rerankers;
    alive text[];
    whole_keys text[];
    whole_tickets bigint[];
BEGIN
    PERFORM _follow_partitions(reranker);
    IF stored.number IS NULL OR NOT _hold(stored) THEN
        RETURN;
    END IF;
    target := _followed(reranker);
    PERFORM _postpone_locked(target, stored, keys, tickets);
    alive := _alive(target, stored, keys, tickets);
    PERFORM _store_passages(
        target, stored, alive, passage_keys, passages, passage_hashes, cut_hashes, embedding_places, embeddings);
    PERFORM _store_tokens(target, stored, 'tokens', alive, passage_keys, passages, token_keys, token_passages,
        token_parts, tokens);
    IF stored.token_bits THEN
        PERFORM _store_tokens(target, stored, 'bits', alive, passage_keys, passages, bit_keys, bit_passages,
            bit_parts, bits);
    END IF;
    PERFORM _store_documents(target, stored, alive, keys, hashes, bounds);
    SELECT array_agg(d.key), array_agg(d.ticket) INTO whole_keys, whole_tickets
    FROM unnest(keys, tickets, hashes) d (key, ticket, hash) WHERE d.hash IS NOT NULL;
    IF whole_keys IS NOT NULL THEN
        PERFORM _finish(target, stored, whole_keys, whole_tickets);
    END IF;
    IF array_position(hashes, NULL) IS NOT NULL THEN
        PERFORM _go_on(stored, keys, tickets);
    END IF;
END
$$;
COMMENT ON FUNCTION store IS 'Stores the passages of claimed documents with their vectors, and finishes what is whole';

-- Holds claimed documents against deletion until we commit. A long transaction that has locked some of them isn't
-- waited for: they have a new ticket and stay claimed for a few seconds, after which they are tried again.
CREATE OR REPLACE FUNCTION _postpone_locked(
    _reranker rerankers, _generation generations, _keys text[], _tickets bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    key text := _key_of(_reranker, 's');
    locked text[];
BEGIN
    IF NOT _is_table(_reranker.source) THEN
        RETURN;
    END IF;
    EXECUTE format($sql$
        WITH held AS MATERIALIZED (
            SELECT %1$s AS key FROM %2$s s WHERE %3$s FOR KEY SHARE OF s SKIP LOCKED)
        SELECT array_agg((%1$s)::text) FROM %2$s s
        WHERE %3$s AND NOT EXISTS (SELECT FROM held h WHERE %4$s)
        $sql$, key, _reranker.source, _among(_reranker, key, '$1'), _same_key(_reranker, 'h.key', key))
    INTO locked USING _keys;
    UPDATE pending p
    SET ticket = DEFAULT, claimed_until = now() + interval '5 seconds', attempts = p.attempts - 1
    WHERE p.ctid = ANY (ARRAY(SELECT _held(_generation, _keys, _tickets))) AND p.key = ANY (locked);
END
$$;

-- Those of claimed documents that are still there and as they were, held against deletion until we commit.
CREATE OR REPLACE FUNCTION _alive(_reranker rerankers, _generation generations, _keys text[], _tickets bigint[])
RETURNS text[]
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    claimed text[] := _waiting(_generation, _keys, _tickets);
    alive text[];
BEGIN
    EXECUTE format('WITH alive AS MATERIALIZED (%s) SELECT coalesce(array_agg(a.key::text), ''{}'') FROM alive a',
        _alive_sql(_reranker, _generation))
    INTO alive USING claimed;
    RETURN alive;
END
$$;

CREATE OR REPLACE FUNCTION _store_passages(
    _reranker rerankers, _generation generations, _alive text[], _keys text[], _passages int[], _hashes bytea[],
    _cut_hashes bytea[], _embedding_places int[], _embeddings real[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    dims int := cardinality(_embeddings) / (SELECT max(e.place) FROM unnest(_embedding_places) e (place));
BEGIN
    EXECUTE format($sql$
        INSERT INTO %1$s AS s (key, passage, hash, cut_hash, embedding, tenant%4$s)
        SELECT d.key, p.passage, p.hash, p.cut_hash, ($7[(p.place - 1) * $8 + 1 : p.place * $8])::halfvec, d.tenant%4$s
        FROM unnest($2, $3, $4, $5, $6) p (key, passage, hash, cut_hash, place)
        JOIN %2$s d ON %3$s
        WHERE p.key = ANY ($1)
        ON CONFLICT (key, passage%4$s) DO UPDATE
        SET (hash, cut_hash, embedding, tenant)
            = (excluded.hash, excluded.cut_hash, excluded.embedding, excluded.tenant)
        $sql$, _side_table(_generation, 'passages'), _documents(_generation),
        _same_key(_reranker, 'd.key', format('p.key::%s', _reranker.key_type)), _partition(_generation))
    USING _alive, _keys, _passages, _hashes, _cut_hashes, _embedding_places, _embeddings, dims;
END
$$;

-- Replaces the token vectors of the passages just stored.
CREATE OR REPLACE FUNCTION _store_tokens(
    _reranker rerankers, _generation generations, _tier text, _alive text[], _passage_keys text[], _passages int[],
    _keys text[], _token_passages int[], _parts int[], _tokens bytea[])
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    token_table text := _side_table(_generation, _tier);
BEGIN
    EXECUTE format($sql$
        DELETE FROM %s t USING unnest($2, $3) p (key, passage)
        WHERE (t.key, t.passage) = (p.key::%s, p.passage) AND p.key = ANY ($1)
        $sql$, token_table, _reranker.key_type)
    USING _alive, _passage_keys, _passages;
    EXECUTE format($sql$
        INSERT INTO %1$s (key, passage, part, tokens%3$s)
        SELECT t.key::%2$s, t.passage, t.part, t.tokens%3$s
        FROM unnest($2, $3, $4, $5) t (key, passage, part, tokens) %4$s WHERE t.key = ANY ($1)
        $sql$, token_table, _reranker.key_type, _partition(_generation), CASE WHEN _generation.partitioned
            THEN format('JOIN (SELECT d.key, d.partition FROM %s d) d ON %s', _documents(_generation),
                _same_key(_reranker, 'd.key', format('t.key::%s', _reranker.key_type))) END)
    USING _alive, _keys, _token_passages, _parts, _tokens;
END
$$;

-- Writes the rows of documents that are whole, and takes away what is stored of other passages than they have.
CREATE OR REPLACE FUNCTION _store_documents(
    _reranker rerankers, _generation generations, _alive text[], _keys text[], _hashes bytea[], _bounds text[])
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    stored text;
BEGIN
    EXECUTE format($sql$
        INSERT INTO %1$s AS s (key, bounds, content_hash, tenant%4$s)
        SELECT d.key, v.bounds::int[], v.hash, d.tenant%4$s
        FROM unnest($2, $3, $4) v (key, hash, bounds) JOIN %2$s d ON %3$s
        WHERE v.key = ANY ($1) AND v.hash IS NOT NULL
        ON CONFLICT (key%4$s) DO UPDATE
        SET (bounds, content_hash, tenant, encoded_at)
            = (excluded.bounds, excluded.content_hash, excluded.tenant, now())
        $sql$, _side_table(_generation), _documents(_generation),
        _same_key(_reranker, 'd.key', format('v.key::%s', _reranker.key_type)), _partition(_generation))
    USING _alive, _keys, _hashes, _bounds;
    FOREACH stored IN ARRAY _side_table(_generation, 'passages') || _token_tables(_generation) LOOP
        EXECUTE format($sql$
            DELETE FROM %s t USING unnest($2, $3, $4) v (key, hash, bounds)
            WHERE t.key = v.key::%s AND v.key = ANY ($1) AND v.hash IS NOT NULL
              AND t.passage <> ALL (_numbers(v.bounds::int[]))
            $sql$, stored, _reranker.key_type)
        USING _alive, _keys, _hashes, _bounds;
    END LOOP;
END
$$;

-- Counts no try against documents that are stored in part, and gives their claim another lease.
CREATE OR REPLACE FUNCTION _go_on(_generation generations, _keys text[], _tickets bigint[]) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    UPDATE pending p SET attempts = 1, claimed_until = greatest(p.claimed_until, now() + _lease())
    WHERE p.ctid = ANY (ARRAY(SELECT _held(_generation, _keys, _tickets))) AND p.claimed_by = pg_backend_pid()
$$;

