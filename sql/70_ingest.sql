-- Queue to side tables: what a worker calls. It claims, encodes outside of any transaction, and stores.

DO $$
BEGIN
    IF to_regtype('pgrerank.claimed') IS NULL THEN
        CREATE TYPE claimed AS (
            reranker text,
            generation int,
            embedding_model text,
            late_interaction_model text,
            token_precision text,
            token_dims int,
            token_pool int,
            token_bits boolean,
            projection text,
            passage_size int,
            passage_overlap int,
            passage_structure text,
            keys text[],
            tickets bigint[],
            contents text[],
            prefixes text[],
            content_hashes bytea[],
            are_encoded boolean[],
            stored_passages jsonb[]
        );
    END IF;
END
$$;
COMMENT ON TYPE claimed IS
    'Claimed documents of one generation in parallel arrays, and what is to be stored of them';
COMMENT ON COLUMN claimed.embedding_model IS 'NULL where the user keeps the embeddings';
COMMENT ON COLUMN claimed.prefixes IS 'What models read in front of each passage; NULL where it is nothing';
COMMENT ON COLUMN claimed.stored_passages IS
    'Of each document the passages that are stored, as an object of their hashes in hexadecimal by number; NULL: none';
COMMENT ON COLUMN claimed.are_encoded IS 'Whether a document has gone, or its text is the one that is encoded';

-- Claims documents of one generation: one row, or none where nothing waits. A claim ends with its lease or with the
-- session that made it. Each reranker has its turn; one that can't be worked at is set aside, unless it was asked for.
CREATE OR REPLACE FUNCTION claim(
    max_documents int DEFAULT 64,
    reranker text DEFAULT NULL,
    max_attempts int DEFAULT 3,
    lease interval DEFAULT _lease()
) RETURNS SETOF claimed
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$
DECLARE
    alive int[] := ARRAY(SELECT a.pid FROM pg_stat_activity a WHERE a.datname = current_database());
    target rerankers;
    first pending;
BEGIN
    FOR target IN
        SELECT * FROM rerankers r WHERE claim.reranker IS NULL OR r.name = claim.reranker ORDER BY random()
    LOOP
        first := _first_claimable(target.name, alive, claim.reranker IS NOT NULL, max_attempts);
        CONTINUE WHEN first IS NULL;
        BEGIN
            PERFORM _followed(target.name);
            PERFORM _follow_partitions(target.name);
            RETURN NEXT _settled(_claim_like(first, alive, max_documents, lease));
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM _set_back(first.reranker, first.generation, format('locked by somebody else: %s', SQLERRM));
        WHEN OTHERS THEN
            IF claim.reranker IS NOT NULL THEN
                RAISE;
            END IF;
            PERFORM _set_back(first.reranker, first.generation, SQLERRM);
        END;
    END LOOP;
    PERFORM _tend(r) FROM rerankers r WHERE claim.reranker IS NULL OR r.name = claim.reranker;
    PERFORM forget_searches();
END
$$;
COMMENT ON FUNCTION claim IS 'Claims pending documents for the calling worker session: one row, or none';

-- The document of a reranker that is to be claimed first. On the way those are put aside that no worker survives.
CREATE OR REPLACE FUNCTION _first_claimable(
    _reranker text, _alive int[], _even_set_aside boolean, _max_attempts int) RETURNS pending
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    start bigint := _queue_start(_reranker);
    first pending;
BEGIN
    LOOP
        first := _first_pending(_reranker, start, _alive, _even_set_aside);
        IF first IS NULL AND start > 0 THEN
            start := 0;
        ELSIF first.claimed_by IS NULL OR first.attempts < _max_attempts THEN
            RETURN first;
        ELSE
            UPDATE pending p SET failed_at = now(), claimed_by = NULL,
                last_error = format('no worker survived encoding it, %s times', p.attempts)
            WHERE (p.reranker, p.generation, p.key) = (first.reranker, first.generation, first.key);
        END IF;
    END LOOP;
END
$$;

-- The ticket from which a session looks for documents, which it keeps for the next time: the first there is, as no dead
-- row in front of it need be read again. One time in a hundred it looks from the very beginning, for a document may
-- come late: its ticket is drawn when it is enqueued, and seen when that is committed.
CREATE OR REPLACE FUNCTION _queue_start(_reranker text) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    known jsonb := coalesce(nullif(current_setting('pgrerank.queue_starts', true), ''), '{}');
    start bigint := CASE WHEN random() < 0.99 THEN coalesce((known ->> _reranker)::bigint, 0) ELSE 0 END;
BEGIN
    SELECT p.ticket INTO start FROM pending p
    WHERE p.failed_at IS NULL AND p.reranker = _reranker AND p.ticket >= start ORDER BY p.ticket LIMIT 1;
    start := coalesce(start, 0);
    PERFORM set_config('pgrerank.queue_starts', (known || jsonb_build_object(_reranker, start))::text, false);
    RETURN start;
END
$$;

-- The document of a reranker that has waited longest, of those that may be claimed; of generations that are set aside
-- only if that is asked for.
CREATE OR REPLACE FUNCTION _first_pending(_reranker text, _start bigint, _alive int[], _even_set_aside boolean)
RETURNS pending
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT p FROM pending p
    WHERE p.failed_at IS NULL AND p.reranker = _reranker AND p.ticket >= _start
      AND (p.claimed_by IS NULL OR p.claimed_by <> ALL (_alive) OR p.claimed_until < now())
      AND (_even_set_aside OR NOT EXISTS (
        SELECT FROM setbacks s WHERE (s.reranker, s.generation) = (p.reranker, p.generation)
            AND s.until > clock_timestamp()))
    ORDER BY p.ticket LIMIT 1 FOR UPDATE OF p SKIP LOCKED
$$;

-- The claim; without its documents where they need no model: these are stored at once. If that fails, the worker finds
-- out which of them is to blame.
CREATE OR REPLACE FUNCTION _settled(_claim claimed) RETURNS claimed
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    settled claimed := _claim;
BEGIN
    IF _claim.embedding_model IS NULL AND _claim.late_interaction_model IS NULL THEN
        PERFORM store(_claim.reranker, _claim.generation, _claim.keys, _claim.tickets, _claim.content_hashes);
        settled.keys := '{}';
        settled.tickets := '{}';
        settled.contents := '{}';
        settled.prefixes := '{}';
        settled.content_hashes := '{}';
        settled.are_encoded := '{}';
        settled.stored_passages := '{}';
    END IF;
    RETURN settled;
EXCEPTION WHEN lock_not_available THEN
    RAISE;
WHEN OTHERS THEN
    RETURN _claim;
END
$$;

-- Claims documents of the same generation as the first. Most claims are many documents that were never tried; one that
-- was tried before comes alone, so that a document which kills workers takes no other with it.
CREATE OR REPLACE FUNCTION _claim_like(_first pending, _alive int[], _max_documents int, _lease interval)
RETURNS claimed
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    keys text[];
    tickets bigint[];
BEGIN
    WITH chosen AS (
        SELECT p.ctid FROM pending p
        WHERE (p.reranker, p.generation) = (_first.reranker, _first.generation) AND p.failed_at IS NULL
          AND p.ticket >= _first.ticket
          AND (p.claimed_by IS NULL OR p.claimed_by <> ALL (_alive) OR p.claimed_until < now())
          AND CASE WHEN _first.attempts > 0 THEN p.key = _first.key ELSE p.attempts = 0 END
        ORDER BY p.ticket LIMIT CASE WHEN _first.attempts > 0 THEN 1 ELSE _max_documents END
        FOR UPDATE SKIP LOCKED),
    claimed AS (
        UPDATE pending p
        SET claimed_by = pg_backend_pid(), claimed_until = now() + _lease, attempts = p.attempts + 1
        FROM chosen WHERE p.ctid = chosen.ctid RETURNING p.key, p.ticket)
    SELECT array_agg(c.key ORDER BY c.ticket), array_agg(c.ticket ORDER BY c.ticket) INTO keys, tickets FROM claimed c;
    RETURN _with_contents(_reranker(_first.reranker), _generation(_first.reranker, _first.generation), keys, tickets);
END
$$;

-- What a worker needs to encode claimed documents.
CREATE OR REPLACE FUNCTION _with_contents(
    _reranker rerankers, _generation generations, _keys text[], _tickets bigint[]) RETURNS claimed
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '100ms'
AS $$
DECLARE
    claim claimed := jsonb_populate_record(NULL::claimed, to_jsonb(_generation));
BEGIN
    PERFORM _hold(_generation, false);
    claim.generation := _generation.number;
    IF _reranker.embedding_column IS NOT NULL THEN
        claim.embedding_model := NULL;
    END IF;
    EXECUTE format($sql$
        WITH d AS MATERIALIZED (%1$s)
        SELECT array_agg(c.key ORDER BY c.place), array_agg(c.ticket ORDER BY c.place),
            array_agg(d.content ORDER BY c.place), array_agg(d.prefix ORDER BY c.place),
            array_agg(h.hash ORDER BY c.place),
            array_agg(d.key IS NULL OR s.content_hash IS NOT DISTINCT FROM h.hash ORDER BY c.place),
            array_agg((
                SELECT jsonb_object_agg(p.passage, encode(p.hash, 'hex')) FROM %4$s p WHERE p.key = d.key)
                ORDER BY c.place)
        FROM unnest($1, $2) WITH ORDINALITY c (key, ticket, place)
        LEFT JOIN d ON d.key = c.key::%2$s
        LEFT JOIN %3$s s ON s.key = d.key,
        LATERAL (SELECT _content_hash(d.content, d.prefix) AS hash) h
        $sql$, format('SELECT * FROM %s d WHERE %s', _documents(_generation), _among(_reranker, 'd.key', '$1')),
        _reranker.key_type, _side_table(_generation), _side_table(_generation, 'passages'))
    INTO claim.keys, claim.tickets, claim.contents, claim.prefixes, claim.content_hashes, claim.are_encoded,
        claim.stored_passages
    USING _keys, _tickets;
    RETURN claim;
END
$$;

-- Texts of the source at random, to fit a projection on.
CREATE OR REPLACE FUNCTION sample_texts(reranker text, generation int) RETURNS SETOF text
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    target rerankers := _reranker(reranker);
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT d.content
        FROM (SELECT %s AS key FROM %s s ORDER BY random() LIMIT $1) k JOIN %s d ON %s
        WHERE d.content ~ '\S'
        $sql$, _key_of(target, 's'), target.source, _documents(_known_generation(target.name, generation)),
        _same_key(target, 'd.key', 'k.key'))
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
BEGIN
    UPDATE generations g SET projection = md5(keep_projection.matrix)
    WHERE (g.reranker, g.number) = (keep_projection.reranker, keep_projection.generation) AND g.projection IS NULL;
    IF FOUND THEN
        INSERT INTO projections (reranker, generation, matrix, documents)
        VALUES (reranker, generation, matrix, documents);
    END IF;
    RETURN (
        SELECT p.matrix FROM projections p
        WHERE (p.reranker, p.generation) = (keep_projection.reranker, keep_projection.generation));
END
$$;
COMMENT ON FUNCTION keep_projection IS 'Gives a generation its projection, unless it has one; returns the one it has';

-- Where claimed documents stand in the queue, locked; but for those that have another ticket now, or whose row somebody
-- else has locked. Each is looked up by its key: the planner would as soon read the whole queue for all of them, where
-- it has not been analysed since it was filled.
CREATE OR REPLACE FUNCTION _held(_generation generations, _keys text[], _tickets bigint[]) RETURNS SETOF tid
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT p.ctid FROM unnest(_keys, _tickets) d (key, ticket), LATERAL (
        SELECT q.ctid FROM pending q
        WHERE (q.reranker, q.generation, q.key, q.ticket)
            = (_generation.reranker, _generation.number, d.key, d.ticket) FOR UPDATE SKIP LOCKED) p
$$;

-- Those of claimed documents that wait with the tickets that they were claimed with. OFFSET 0 keeps the planner, too,
-- to look each up by its key.
CREATE OR REPLACE FUNCTION _waiting(_generation generations, _keys text[], _tickets bigint[]) RETURNS text[]
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT ARRAY(
        SELECT p.key FROM unnest(_keys, _tickets) d (key, ticket), LATERAL (
            SELECT q.key FROM pending q
            WHERE (q.reranker, q.generation, q.key, q.ticket)
                = (_generation.reranker, _generation.number, d.key, d.ticket) OFFSET 0) p)
$$;

-- Takes claimed documents off the queue. A claim that comes upon one just as it is claimed by us has it locked until it
-- commits, which is soon. So what is left is tried again for a tenth of a second; longer locks are a writer's, who
-- enqueues it anew.
CREATE OR REPLACE FUNCTION _dequeue(_generation generations, _keys text[], _tickets bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    FOR try IN 1..20 LOOP
        DELETE FROM pending p WHERE p.ctid = ANY (ARRAY(SELECT _held(_generation, _keys, _tickets)));
        EXIT WHEN cardinality(_waiting(_generation, _keys, _tickets)) = 0;
        PERFORM pg_sleep(0.005);
    END LOOP;
END
$$;

-- Takes claimed documents off the queue, and stores their words and tenants: those of documents that have nothing else
-- to be encoded too, as their language, tenant or the mean length may have changed. When a new generation has nothing
-- left to do it takes over.
CREATE OR REPLACE FUNCTION _finish(_reranker rerankers, _generation generations, _keys text[], _tickets bigint[])
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
BEGIN
    PERFORM _dequeue(_generation, _keys, _tickets);
    DELETE FROM setbacks s WHERE s.ctid = ANY (ARRAY(
        SELECT b.ctid FROM setbacks b
        WHERE (b.reranker, b.generation) = (_generation.reranker, _generation.number) AND NOT b.missed_writes
        FOR UPDATE SKIP LOCKED));
    PERFORM _store_words(_reranker, _generation, _keys);
    PERFORM _store_tenants(_reranker, _generation, _keys);
    PERFORM _count_changes(_reranker, _generation, cardinality(_keys));
    PERFORM _switch_when_complete(_reranker.name);
END
$$;

CREATE OR REPLACE FUNCTION finish(reranker text, generation int, keys text[], tickets bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET lock_timeout = '500ms' SET datestyle = 'ISO'
    SET timezone = 'UTC'
AS $$
DECLARE
    finished generations := _generation(reranker, generation);
    target rerankers;
BEGIN
    PERFORM _follow_partitions(reranker);
    IF finished.number IS NOT NULL AND _hold(finished) THEN
        target := _followed(reranker);
        PERFORM _postpone_locked(target, finished, keys, tickets);
        PERFORM _finish(target, finished, keys, tickets);
    END IF;
END
$$;
COMMENT ON FUNCTION finish IS 'Takes claimed documents off the queue that have nothing to be encoded';

-- Gives a claimed document back, to be tried again after the others, or puts it aside after max_attempts tries.
CREATE OR REPLACE FUNCTION fail(
    reranker text, generation int, key text, ticket bigint, error text, max_attempts int DEFAULT 3) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    UPDATE pending p
    SET claimed_by = NULL, claimed_until = NULL, last_error = left(fail.error, 1000), ticket = DEFAULT,
        failed_at = CASE WHEN p.attempts >= fail.max_attempts THEN now() END
    WHERE p.ctid = ANY (ARRAY(
        SELECT q.ctid FROM pending q
        WHERE (q.reranker, q.generation, q.key, q.ticket)
            = (fail.reranker, fail.generation, fail.key, fail.ticket) FOR UPDATE SKIP LOCKED));
    SELECT _count_failure(fail.reranker, fail.generation, fail.error);
$$;
COMMENT ON FUNCTION fail IS 'Gives a claimed document back that could not be encoded';

-- Gives back what this session has claimed and not finished, as if it had never been tried: the fault, if any, is not
-- the documents' (a model can't be loaded, say). For that their generation is set aside.
CREATE OR REPLACE FUNCTION release(error text DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _set_back(c.reranker, c.generation, release.error)
    FROM (
        SELECT DISTINCT p.reranker, p.generation FROM pending p
        WHERE p.claimed_by = pg_backend_pid() AND p.failed_at IS NULL AND release.error IS NOT NULL) c;
    UPDATE pending p
    SET claimed_by = NULL, claimed_until = NULL, attempts = p.attempts - 1,
        last_error = coalesce(left(release.error, 1000), p.last_error)
    WHERE p.ctid = ANY (ARRAY(
        SELECT q.ctid FROM pending q
        WHERE q.claimed_by = pg_backend_pid() AND q.failed_at IS NULL FOR UPDATE SKIP LOCKED));
$$;
COMMENT ON FUNCTION release IS 'Gives back all that the calling session has claimed';
