-- The way to the worker: a foreign server and a user mapping of dblink hold address and secret.

-- Says where the worker listens and with what password. The mapping is the schema owner's, as whom _connect runs.
CREATE OR REPLACE FUNCTION set_worker(host text, port int, password text, options jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET client_min_messages = warning
AS $$
DECLARE
    settings text;
BEGIN
    SELECT string_agg(format('%I %L', s.key, s.value), ', ') INTO settings
    FROM jsonb_each_text(jsonb_build_object(
        'host', host,
        'port', port,
        'dbname', 'pgrerank',
        'connect_timeout', 2,  -- seconds
        'tcp_user_timeout', 3000,  -- milliseconds
        'application_name', 'pgrerank') || options) s;
    IF EXISTS (SELECT FROM pg_foreign_server s WHERE s.srvname = 'pgrerank_worker') THEN
        DROP SERVER pgrerank_worker CASCADE;
    END IF;
    EXECUTE format('CREATE SERVER pgrerank_worker FOREIGN DATA WRAPPER dblink_fdw OPTIONS (%s)', settings);
    EXECUTE format($sql$
        CREATE USER MAPPING FOR %s SERVER pgrerank_worker OPTIONS (user 'pgrerank', password %L)
        $sql$, _owner(), password);
EXCEPTION WHEN insufficient_privilege THEN
    PERFORM _raise(SQLSTATE, format('role %s can''t set the worker: %s', current_user, SQLERRM), format(
        'Have an administrator run: GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO %I;', current_user));
END
$$;
COMMENT ON FUNCTION set_worker IS 'Writes the worker''s address and password to a foreign server and user mapping';

-- A worker proves that it is alive by an advisory lock whose number is the time in milliseconds, renewed every few
-- dozen milliseconds from the loop that answers requests. Locks are seen at once by every session, leave nothing
-- behind and work on a standby. An advisory lock has two numbers of 32 bits: the first is ours, the letters "pgrr" in
-- ASCII; the second is the time, which therefore wraps round after 2^31 ms, some 25 days.
CREATE OR REPLACE FUNCTION _heartbeat_class() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT x'70677272'::int $$;

CREATE OR REPLACE FUNCTION _ticks() RETURNS bigint
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 2147483648 $$;

CREATE OR REPLACE FUNCTION _now_tick() RETURNS int
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT ((extract(epoch FROM clock_timestamp()) * 1000)::bigint % _ticks())::int $$;

CREATE OR REPLACE FUNCTION heartbeat(previous int DEFAULT NULL) RETURNS int
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    tick int := _now_tick();
BEGIN
    IF tick IS DISTINCT FROM previous THEN
        PERFORM pg_advisory_lock_shared(_heartbeat_class(), tick);
        IF previous IS NOT NULL THEN
            PERFORM pg_advisory_unlock_shared(_heartbeat_class(), previous);
        END IF;
    END IF;
    RETURN tick;
END
$$;
COMMENT ON FUNCTION heartbeat IS 'Renews the calling worker''s proof of life; takes what the last call returned';

-- Milliseconds since the youngest heartbeat; NULL when no worker has a session in this database. A heartbeat of up to a
-- second ahead of this session's clock reading counts as less than none ago, not as one of 25 days ago.
CREATE OR REPLACE FUNCTION _heartbeat_age() RETURNS int
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    SELECT min((_now_tick() - l.objid::bigint + _ticks() + 1000) % _ticks() - 1000)::int
    FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = _heartbeat_class()::oid AND l.objsubid = 2
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
$$;

-- A connection attempt to a stopped process hangs: its kernel accepts, and from Postgres 16 on dblink heeds no
-- connect_timeout. So wait for a heartbeat younger than this call before trying. No heartbeat at all is no proof of
-- death (a worker may serve without a session here), and a closed port refuses at once.
CREATE OR REPLACE FUNCTION _await_heartbeat(_deadline timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    age int;
BEGIN
    LOOP
        age := _heartbeat_age();
        EXIT WHEN age IS NULL OR age < extract(epoch FROM clock_timestamp() - started) * 1000;
        IF clock_timestamp() >= least(_deadline, started + interval '1 second') THEN
            PERFORM _raise('PGR01', format('the worker does not respond: its last heartbeat was %s ms ago', age));
        END IF;
        PERFORM pg_sleep(0.002);
    END LOOP;
END
$$;

-- SECURITY DEFINER, and these few lines only: the address and secret are the owner's, the connection is the caller's
-- to use.
CREATE OR REPLACE FUNCTION _connect() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_foreign_server s WHERE s.srvname = 'pgrerank_worker') THEN
        PERFORM _raise('PGR01', 'no worker is known', 'Start one with --register, or call pgrerank.set_worker.');
    END IF;
    PERFORM dblink_connect('pgrerank', 'pgrerank_worker');
EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
    PERFORM _raise('PGR01', 'no worker can be reached: connection failed', 'Start one: pgrerank worker');
END
$$;

CREATE OR REPLACE FUNCTION _disconnect() RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF 'pgrerank' = ANY (dblink_get_connections()) THEN
        PERFORM dblink_disconnect('pgrerank');
    END IF;
EXCEPTION WHEN OTHERS THEN
    NULL;  -- it was broken; dblink forgets it all the same
END
$$;

-- Sends one request and waits for its answer: a millisecond without sleeping, then in naps of a fiftieth of what it has
-- waited, 1 to 50 ms, as many sessions that looked each millisecond would take the processor from a worker beside
-- them. Interruptible throughout. NULL means that the connection broke. The connection is dropped whenever the answer
-- was not waited for: a late one must not meet the next request, and its end tells the worker to stop.
CREATE OR REPLACE FUNCTION _exchange(_request text, _deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    waited float8;
BEGIN
    IF dblink_send_query('pgrerank', _request) = 0 THEN
        RETURN NULL;
    END IF;
    WHILE dblink_is_busy('pgrerank') = 1 LOOP
        IF clock_timestamp() >= _deadline THEN
            PERFORM _raise('PGR02', 'the deadline passed before the worker answered');
        END IF;
        waited := extract(epoch FROM clock_timestamp() - started);
        IF waited > 0.001 THEN
            PERFORM pg_sleep(least(greatest(waited / 50, 0.001), 0.05));
        END IF;
    END LOOP;
    RETURN _received();
EXCEPTION
    WHEN connection_exception OR connection_failure OR connection_does_not_exist THEN
        RETURN NULL;
END
$$;

-- Takes the answer that has arrived. Whatever is raised here comes from the worker: that it refused, or an answer
-- that is no JSON. It ends a stage. Faults of our own, raised elsewhere, are not taken for the worker's.
CREATE OR REPLACE FUNCTION _received() RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    answer jsonb;
BEGIN
    SELECT r.answer INTO answer FROM dblink_get_result('pgrerank') r (answer jsonb);
    PERFORM FROM dblink_get_result('pgrerank') r (answer jsonb);  -- the protocol's end of results
    RETURN answer;
EXCEPTION
    WHEN connection_exception OR connection_failure OR connection_does_not_exist THEN
        RAISE;
    WHEN SQLSTATE 'PGR02' THEN
        RAISE;
    WHEN OTHERS THEN
        PERFORM _raise('PGR03', format('the worker refused: %s', SQLERRM));
END
$$;

-- Asks the worker once, a JSON object as text: connects where needed, and once more when an old connection turns out
-- to be broken. A connection whose answer was not taken is closed, whatever was raised.
CREATE OR REPLACE FUNCTION _ask_worker(_request text, _deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    id int := (random() * 2147483647)::int;
    answer jsonb;
    is_connected boolean := 'pgrerank' = ANY (coalesce(dblink_get_connections(), '{}'));
BEGIN
    FOR attempt IN 1..2 LOOP
        IF NOT is_connected THEN
            PERFORM _await_heartbeat(_deadline);
            PERFORM _connect();
        END IF;
        -- A large request to a stopped process would block in send, where nothing interrupts: ask for a sign
        -- of life first.
        IF octet_length(_request) < 65536 OR _exchange('PING', _deadline) IS NOT NULL THEN
            answer := _exchange(format('{"id": %s, "timeout_ms": %s, "request": %s}', id,
                greatest(1, (extract(epoch FROM _deadline - clock_timestamp()) * 1000)::int), _request), _deadline);
            IF answer -> 'id' = to_jsonb(id) THEN
                RETURN answer;
            END IF;
        END IF;
        PERFORM _disconnect();
        EXIT WHEN NOT is_connected;
        is_connected := false;
    END LOOP;
    PERFORM _raise('PGR01', 'the connection to the worker broke');
EXCEPTION WHEN OTHERS OR query_canceled THEN
    PERFORM _disconnect();
    RAISE;
END
$$;

CREATE OR REPLACE FUNCTION ping_worker(timeout interval DEFAULT '3 seconds') RETURNS interval
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
BEGIN
    IF 'pgrerank' <> ALL (coalesce(dblink_get_connections(), '{}')) THEN
        PERFORM _await_heartbeat(started + timeout);
        PERFORM _connect();
    END IF;
    IF _exchange('PING', started + timeout) IS NULL THEN
        PERFORM _disconnect();
        PERFORM _raise('PGR01', 'the connection to the worker broke');
    END IF;
    RETURN clock_timestamp() - started;
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
