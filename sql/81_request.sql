-- A request to a worker and its answer.

-- The longest answer that the native client takes, in bytes, given how many texts it tells of: for each, 256 KiB are
-- the token vectors of 512 tokens with 128 dimensions. jsonb makes ten times as much of what is longest.
CREATE OR REPLACE FUNCTION _longest_answer(_texts int) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 4194304 + 262144 * least(_texts, 1000) $$;

-- Sends one request and waits for its answer, interruptible throughout. Conditions of its own, which _ask_worker makes
-- good where it can: PGR01, the connection broke; PGR04, this worker fell silent; PGR05, it refused, and another may
-- not. A worker says ten times a second, by a notification, that it is at work. Of one that is silent for longer no
-- answer is expected if another can be asked.
CREATE OR REPLACE FUNCTION _exchange(
    _connection text, _request text, _texts int, _tried int[], _deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NOT _is_native(_connection) THEN
        RETURN _exchange_by_dblink(_connection, _request, _tried, _deadline);
    END IF;
    PERFORM _worker_send(_request, _longest_answer(_texts));
    WHILE NOT _worker_wait(_deadline) LOOP
        IF _is_another_alive(_tried) THEN
            PERFORM _raise('PGR04', 'the worker fell silent');
        END IF;
    END LOOP;
    RETURN _received(_connection);
END
$$;

-- Polls: a millisecond without sleeping, then in naps of a fiftieth of what it has waited, 1 to 100 ms and never beyond
-- the deadline, as many sessions that looked each millisecond would take the processor from a worker beside them.
CREATE OR REPLACE FUNCTION _exchange_by_dblink(
    _connection text, _request text, _tried int[], _deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    heard timestamptz := clock_timestamp();
    started timestamptz := heard;
    looked timestamptz := heard;
    waited float8;
BEGIN
    IF dblink_send_query(_connection, _request) = 0 THEN
        PERFORM _raise('PGR01', 'the connection to the worker broke');
    END IF;
    WHILE dblink_is_busy(_connection) = 1 LOOP
        IF clock_timestamp() >= _deadline THEN
            PERFORM _raise('PGR02', 'the deadline passed before the worker answered');
        END IF;
        waited := extract(epoch FROM clock_timestamp() - started);
        IF waited > 0.001 THEN
            PERFORM pg_sleep(greatest(0.001, least(
                waited / 50, 0.1, extract(epoch FROM _deadline - clock_timestamp())::float8)));
        END IF;
        IF waited > 0.1 THEN
            IF EXISTS (SELECT FROM dblink_get_notify(_connection)) THEN
                heard := clock_timestamp();
            ELSIF clock_timestamp() - heard > interval '400 milliseconds' AND _is_another_alive(_tried) THEN
                PERFORM _raise('PGR04', 'the worker fell silent');
            END IF;
            IF clock_timestamp() - looked > interval '50 milliseconds' THEN
                looked := clock_timestamp();
                PERFORM _cancel_overdue();
            END IF;
        END IF;
    END LOOP;
    RETURN _received(_connection);
EXCEPTION
    WHEN connection_exception OR connection_failure OR connection_does_not_exist THEN
        PERFORM _raise('PGR01', 'the connection to the worker broke');
END
$$;

-- Takes the answer that has arrived. Whatever is raised here comes from the worker: that it refused, or an answer
-- that is no JSON. It ends a stage, but for a worker that is stopping or has too much to do; after the latter the
-- connection is as good as before. Faults of our own, raised elsewhere, are not taken for the worker's.
CREATE OR REPLACE FUNCTION _received(_connection text) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    answer jsonb;
BEGIN
    IF _is_native(_connection) THEN
        RETURN _worker_take()::jsonb;
    END IF;
    SELECT r.answer INTO answer FROM dblink_get_result(_connection) r (answer jsonb);
    PERFORM FROM dblink_get_result(_connection) r (answer jsonb);  -- the protocol's end of results
    RETURN answer;
EXCEPTION
    WHEN connection_exception OR connection_failure OR connection_does_not_exist THEN
        PERFORM _raise('PGR01', 'the connection to the worker broke');
    WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' THEN
        RAISE;
    WHEN admin_shutdown THEN
        PERFORM _raise('PGR01', 'the connection to the worker broke: it is stopping');
    WHEN too_many_connections THEN
        IF NOT _is_native(_connection) THEN
            PERFORM FROM dblink_get_result(_connection) r (answer jsonb);
        END IF;
        PERFORM _raise('PGR05', format('the worker refused: %s', SQLERRM));
    WHEN OTHERS THEN
        PERFORM _raise('PGR03', format('the worker refused: %s', SQLERRM));
END
$$;

-- What the session says of its requests, as further members of each: the trace that it belongs to, in the words of W3C
-- Trace Context, and whether nobody waits for it. Anything else in these settings is left out.
CREATE OR REPLACE FUNCTION _context() RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT concat(
        ', "traceparent": "' || substring(current_setting('pgrerank.traceparent', true)
            FROM '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$') || '"',
        CASE WHEN current_setting('pgrerank.background', true) = 'on' THEN ', "background": true' END)
$$;

-- Sends a request, a JSON object as text, and returns its answer.
CREATE OR REPLACE FUNCTION _answer(
    _connection text, _request text, _texts int, _tried int[], _deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    id int := (random() * 2147483647)::int;
    answer jsonb;
BEGIN
    -- A large request to a stopped process would block in dblink, where nothing interrupts: ask for a sign of life.
    IF octet_length(_request) >= 65536 AND NOT _is_native(_connection) THEN
        PERFORM _exchange(_connection, 'PING', 0, _tried, _deadline);
    END IF;
    answer := _exchange(_connection, format('{"id": %s, "timeout_ms": %s%s, "request": %s}', id,
        greatest(1, (extract(epoch FROM _deadline - clock_timestamp()) * 1000)::int), _context(), _request),
        _texts, _tried, _deadline);
    IF answer -> 'id' IS DISTINCT FROM to_jsonb(id) THEN
        PERFORM _raise('PGR01', 'the connection to the worker broke: it answered another request');
    END IF;
    RETURN answer;
END
$$;

-- Asks a worker, and the next where one breaks, falls silent, stops or has too much to do: what is asked is computed
-- and leaves no trace, so it may be asked twice. The connection is dropped whenever its answer was not taken: a late
-- one must not meet the next request, and its end tells the worker to stop. It is kept where the only worker refused:
-- to connect anew costs both sides more than to refuse, and takes the processor from what was accepted. How long an
-- answer may be depends on how many texts it tells of at length.
CREATE OR REPLACE FUNCTION _ask_worker(_request text, _deadline timestamptz, _texts int DEFAULT 1) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    connection text := _connection();
    is_old boolean := connection IS NOT NULL;
    tried int[] := '{}';
    worker int;
    code text;
    message text;
    refused boolean;
BEGIN
    BEGIN
        LOOP
            IF connection IS NULL THEN
                connection := _connect_to_another(tried, _deadline, code, message);
            END IF;
            worker := split_part(connection, ' ', 2);
            BEGIN
                RETURN _answer(connection, _request, _texts, tried || worker, _deadline);
            EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR04' OR SQLSTATE 'PGR05' THEN
                refused := SQLSTATE = 'PGR05';
                code := CASE SQLSTATE WHEN 'PGR01' THEN SQLSTATE ELSE 'PGR03' END;
                message := SQLERRM;
            END;
            -- A connection of old may have broken long ago, with the worker that had the number then.
            IF NOT is_old OR code <> 'PGR01' THEN
                tried := tried || worker;
            END IF;
            EXIT WHEN refused AND NOT _is_another_there(tried);
            PERFORM _disconnect();
            is_old := false;
            connection := NULL;
        END LOOP;
    EXCEPTION WHEN OTHERS OR query_canceled THEN
        PERFORM _disconnect();
        RAISE;
    END;
    PERFORM _raise(code, message);
END
$$;

CREATE OR REPLACE FUNCTION ping_worker(timeout interval DEFAULT '3 seconds') RETURNS interval
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    connection text := _connection();
BEGIN
    IF connection IS NULL THEN
        connection := _connect_to_another('{}', started + timeout);
    END IF;
    PERFORM _exchange(connection, 'PING', 0, NULL, started + timeout);
    RETURN clock_timestamp() - started;
EXCEPTION WHEN OTHERS OR query_canceled THEN
    PERFORM _disconnect();
    RAISE;
END
$$;
COMMENT ON FUNCTION ping_worker IS
    'How long the worker takes to answer, a connection included where there is none; an error where it does not';

-- Takes the scores out of an answer, one for each document; anything else is refused.
CREATE OR REPLACE FUNCTION _scores(_answer jsonb, _documents int) RETURNS real[]
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    scores real[];
BEGIN
    IF jsonb_typeof(_answer -> 'scores') = 'array' THEN
        scores := ARRAY(
            SELECT s.score::real
            FROM jsonb_array_elements_text(_answer -> 'scores') WITH ORDINALITY s (score, place) ORDER BY s.place);
    END IF;
    IF cardinality(scores) IS DISTINCT FROM _documents OR EXISTS (
        SELECT FROM unnest(scores) s (score)
        WHERE s.score IS NULL OR s.score::text IN ('NaN', 'Infinity', '-Infinity')) THEN
        PERFORM _raise('PGR03', format(
            'the worker answered %s scores for %s documents, or some that are no numbers',
            coalesce(cardinality(scores)::text, 'no'), _documents));
    END IF;
    RETURN scores;
EXCEPTION WHEN data_exception THEN
    PERFORM _raise('PGR03', format('the worker answered scores that are no numbers: %s', SQLERRM));
END
$$;
