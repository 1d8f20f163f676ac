-- The way to a worker and back.

-- There are two clients: that of the native kernel where it is installed, and dblink. The former can neither be hung
-- nor flooded, and knows no TLS: it takes servers all of whose options it can heed, and leaves the others to dblink. A
-- host is one, and no Unix-domain socket.
CREATE OR REPLACE FUNCTION has_native_client() RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT to_regprocedure('pgrerank._worker_wait(timestamptz)') IS NOT NULL $$;
COMMENT ON FUNCTION has_native_client IS
    'Whether the native client asks workers in this database, where their servers'' options let it; else dblink does';

CREATE OR REPLACE FUNCTION _is_asked_natively(_worker int) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT has_native_client() AND NOT EXISTS (
        SELECT FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o
        WHERE s.srvname = _server_of(_worker) AND NOT CASE
            WHEN o.option_name IN ('host', 'hostaddr') THEN o.option_value !~ '[/@,]'
            WHEN o.option_name = 'port' THEN o.option_value ~ '^\d+$'
            WHEN o.option_name = 'sslmode' THEN o.option_value IN ('disable', 'allow', 'prefer')
            ELSE o.option_name IN ('dbname', 'application_name', 'connect_timeout', 'tcp_user_timeout', 'require_auth')
            END)
$$;

-- SECURITY DEFINER, and these few lines only: the address and secret are the owner's, the connection is the caller's
-- to use.
CREATE OR REPLACE FUNCTION _connect(_worker int, _until timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_foreign_server s WHERE s.srvname = _server_of(_worker)) THEN
        PERFORM _raise('PGR01', format('worker %s has gone', _worker));
    ELSIF _is_asked_natively(_worker) THEN
        PERFORM _worker_connect(_worker, _server_of(_worker), _until);
    ELSE
        PERFORM dblink_connect('pgrerank ' || _worker, _server_of(_worker));
    END IF;
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection OR undefined_object THEN  -- the owner's user mapping
    PERFORM _raise('PGR01', 'no worker can be reached: connection failed', 'Start one: pgrerank worker');
END
$$;

-- Connects to a worker; false where it can't be reached, or not until then, of which the native client raises PGR01
-- with the reason; it ends by itself, and needs a lock only so that others see who is stuck. What waits longer in
-- dblink is cancelled by others (see _cancel_overdue), which is an error of the same kind as the user's own cancel. The
-- latter is passed on while there is time; so is the statement's timeout always. Afterwards nothing ends the call later
-- than its deadline. A cancel may arrive when it has connected already: it is waited for, as long as somebody is about
-- to send one.
CREATE OR REPLACE FUNCTION _connect_until(_worker int, _until timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    code text;
    message text;
BEGIN
    IF _is_asked_natively(_worker) THEN
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(_lock_class('dialling', _worker), _tick(_until));
            PERFORM _connect(_worker, _until);
            PERFORM _raise('PGR00', 'connected');
        EXCEPTION WHEN SQLSTATE 'PGR00' THEN
            RETURN true;
        END;
    END IF;
    BEGIN
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(_lock_class('connecting', _worker), _tick(_until));
            PERFORM _connect(_worker, _until);
            PERFORM _raise('PGR00', 'connected');
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            code := SQLSTATE;
            message := SQLERRM;
        END;
        WHILE EXISTS (SELECT FROM _being_cancelled()) AND clock_timestamp() < _until + interval '1 second' LOOP
            PERFORM pg_sleep(0.001);
        END LOOP;
    EXCEPTION WHEN query_canceled THEN
        code := SQLSTATE;
        message := SQLERRM;
    END;
    IF code = 'PGR00' THEN
        RETURN true;
    END IF;
    PERFORM _disconnect();
    IF code <> 'PGR01' AND (code <> '57014' OR clock_timestamp() < _until OR _is_statement_over()) THEN
        PERFORM _raise(code, message);
    END IF;
    RETURN false;
END
$$;

-- The locks of those who are about to cancel this session.
CREATE OR REPLACE FUNCTION _being_cancelled() RETURNS SETOF int
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT l.pid FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = _lock_class('cancelling', 0)::oid
      AND l.objid = pg_backend_pid()::oid AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
$$;

CREATE OR REPLACE FUNCTION _is_statement_over() RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT s.setting <> '0'
        AND clock_timestamp() - statement_timestamp() >= s.setting::int * interval '1 millisecond'
    FROM pg_settings s WHERE s.name = 'statement_timeout'
$$;

-- Connects to a worker that has not been tried and returns the connection. Half a second is enough for any; where
-- another is there to be tried after, so is a quarter of the time that is left. Where none is, it raises what went wrong
-- before.
CREATE OR REPLACE FUNCTION _connect_to_another(
    _tried int[], _deadline timestamptz, _code text DEFAULT NULL, _message text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    tried int[] := _tried;
    worker int;
    patience interval;
    reason text;
BEGIN
    PERFORM _cancel_overdue();
    LOOP
        worker := _choose_worker(tried, _deadline);
        IF worker IS NULL AND clock_timestamp() >= _deadline THEN
            PERFORM _raise('PGR02', 'the deadline passed before a worker was reached');
        ELSIF worker IS NULL THEN
            PERFORM _raise(coalesce(_code, 'PGR01'), coalesce(_message, reason, _why_unreachable()),
                CASE WHEN _code IS NULL
                    THEN 'Start one with pgrerank worker --register, or call pgrerank.set_worker.' END);
        END IF;
        tried := tried || worker;
        patience := (_deadline - clock_timestamp()) / CASE WHEN _is_another_alive(tried) THEN 4 ELSE 1 END;
        BEGIN
            IF _connect_until(worker, clock_timestamp() + least(patience, interval '500 milliseconds')) THEN
                RETURN _connection();
            END IF;
        EXCEPTION WHEN SQLSTATE 'PGR01' THEN
            reason := SQLERRM;
        END;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION _why_unreachable() RETURNS text
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT CASE
        WHEN count(*) = 0 THEN 'no worker is known'
        WHEN min(r.age) IS NULL THEN format('no worker is alive, of %s known', count(*))
        WHEN min(r.age) > 150 THEN format('no worker responds: the last heartbeat was %s ms ago', min(r.age))
        WHEN NOT bool_or(EXISTS (
            SELECT FROM pg_user_mappings m WHERE m.srvname = _server_of(r.worker) AND m.umuser IN (0, _owner())))
            THEN format('no worker can be reached: their foreign servers have no user mapping for %s', _owner())
        ELSE 'no worker can be reached: connection failed' END
    FROM _reachable_workers() r
$$;

-- The open connection to a worker, if there is one: `native` or `pgrerank`, which is its name for dblink, and the
-- worker's number.
CREATE OR REPLACE FUNCTION _connection() RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    worker int;
BEGIN
    IF has_native_client() THEN
        worker := _worker_connected();
    END IF;
    IF worker IS NOT NULL THEN  -- apart from what follows, as that takes longer to begin than all this
        RETURN 'native ' || worker;
    END IF;
    RETURN (
        SELECT c.name FROM unnest(dblink_get_connections()) c (name) WHERE starts_with(c.name, 'pgrerank ') LIMIT 1);
END
$$;

CREATE OR REPLACE FUNCTION _is_native(_connection text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN starts_with(_connection, 'native ');
END
$$;

CREATE OR REPLACE FUNCTION _disconnect() RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    connection text := _connection();
BEGIN
    IF _is_native(connection) THEN
        PERFORM _worker_disconnect();
    ELSIF connection IS NOT NULL THEN
        PERFORM dblink_disconnect(connection);
    END IF;
EXCEPTION WHEN OTHERS THEN
    NULL;  -- it was broken; dblink forgets it all the same
END
$$;

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

CREATE OR REPLACE FUNCTION _is_another_alive(_tried int[]) RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT EXISTS (SELECT FROM _reachable_workers() r WHERE r.worker <> ALL (_tried) AND r.age < 250 AND r.worker > 0)
$$;

CREATE OR REPLACE FUNCTION _is_another_there(_tried int[]) RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT EXISTS (SELECT FROM _reachable_workers() r WHERE r.worker <> ALL (_tried) AND r.age IS NOT NULL)
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
