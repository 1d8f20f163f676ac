-- The way to a worker: which one, and the connection to it.

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

-- Connects to a worker that has not been tried and returns the connection. Half a second is enough for any; where
-- another is there to be tried after, so is a quarter of the time that is left. Where none is, it raises what went
-- wrong before.
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
