-- Who answers searches: workers announce themselves, prove by the hour of their last heartbeat that they live, and say
-- how busy they are.

CREATE TABLE IF NOT EXISTS announcements (
    worker int PRIMARY KEY CHECK (worker BETWEEN 1 AND 32767),
    host text NOT NULL,
    port int NOT NULL,
    is_registered boolean NOT NULL,
    capacity int NOT NULL,
    models text[] NOT NULL DEFAULT '{}',
    waiting int NOT NULL DEFAULT 0,
    sessions int NOT NULL DEFAULT 0,
    version text,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    alive_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    precisions jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);  -- each row is written every second
COMMENT ON TABLE announcements IS 'What each worker said of itself last; pgrerank.workers has it with proofs of life';
GRANT SELECT ON announcements TO PUBLIC;

-- The foreign server and the user mapping that dblink reaches a worker by. Who does not know the password is not
-- believed (require_auth) where libpq can tell, which is from 16 on.
CREATE OR REPLACE FUNCTION _create_server(_server name, _host text, _port int, _password text, _options jsonb)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET client_min_messages = warning
AS $$
DECLARE
    statement text := format('CREATE SERVER %I FOREIGN DATA WRAPPER dblink_fdw', _server);
    options jsonb := jsonb_build_object(
        'host', _host,
        'port', _port,
        'dbname', 'pgrerank',
        'connect_timeout', 2,  -- seconds
        'tcp_user_timeout', 1000,  -- milliseconds
        'application_name', 'pgrerank') || _options;
BEGIN
    PERFORM _drop_server(_server);
    BEGIN
        EXECUTE statement || _server_options('{"require_auth": "scram-sha-256"}' || options);
    EXCEPTION WHEN fdw_option_name_not_found OR fdw_invalid_option_name THEN
        EXECUTE statement || _server_options(options);
    END;
    EXECUTE format($sql$
        CREATE USER MAPPING FOR %s SERVER %I OPTIONS (user 'pgrerank', password %L)
        $sql$, _owner(), _server, _password);
    EXECUTE format('GRANT USAGE ON FOREIGN SERVER %I TO %s', _server, _owner());
EXCEPTION WHEN insufficient_privilege THEN
    PERFORM _raise(SQLSTATE, format('role %s can''t set the worker: %s', current_user, SQLERRM), format(
        'Have an administrator run: GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO %I;', current_user));
END
$$;

CREATE OR REPLACE FUNCTION _server_options(_options jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format(' OPTIONS (%s)', string_agg(format('%I %L', o.key, o.value), ', ')) FROM jsonb_each_text(_options) o
$$;

CREATE OR REPLACE FUNCTION _drop_server(_server name) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET client_min_messages = warning
AS $$
BEGIN
    EXECUTE format('DROP SERVER IF EXISTS %I CASCADE', _server);
END
$$;

-- Where searches find worker number so-and-so; number 0 is what set_worker wrote.
CREATE OR REPLACE FUNCTION _server_of(_worker int) RETURNS name
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 'pgrerank_worker' || coalesce('_' || nullif(_worker, 0), '') $$;

CREATE OR REPLACE FUNCTION set_worker(host text, port int, password text, options jsonb DEFAULT '{}') RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT _create_server(_server_of(0), host, port, password, options) $$;
COMMENT ON FUNCTION set_worker IS
    'Writes the address and password of a proxy before workers, or of one that does not register, for searches';

-- A worker proves that it is alive by an advisory lock whose number is the time in milliseconds, renewed every few
-- dozen milliseconds from the loop that answers requests. Locks are seen at once by every session, leave nothing
-- behind and work on a standby. An advisory lock has two numbers of 32 bits. The first says what it is for in its upper
-- half, and which worker it is about in the lower; the second is the time, which therefore wraps round after 2^31 ms,
-- some 25 days.
CREATE OR REPLACE FUNCTION _lock_class(_purpose text, _worker int) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT x'70670000'::int  -- the letters "pg" in ASCII
        + 65536 * array_position('{alive,connecting,cancelling,counting,checking,dialling}'::text[], _purpose)
        - 65536 + _worker
$$;

CREATE OR REPLACE FUNCTION _ticks() RETURNS bigint
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 2147483648 $$;

CREATE OR REPLACE FUNCTION _tick(_time timestamptz) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT ((extract(epoch FROM _time) * 1000)::bigint % _ticks())::int $$;

-- The advisory locks of one purpose in this database: about which worker, whose, and how many milliseconds ago the time
-- was that they tell; negative where it is yet to come. All who wait ask this many times a second, and PL/pgSQL keeps
-- the plan.
CREATE OR REPLACE FUNCTION _times_of(_purpose text) RETURNS TABLE (worker int, pid int, age int)
LANGUAGE plpgsql VOLATILE
SET search_path FROM CURRENT
AS $$
DECLARE
    base int := _lock_class(_purpose, 0);
BEGIN
    RETURN QUERY
    SELECT l.classid::int - base, l.pid,
        ((_tick(clock_timestamp()) - l.objid::bigint + _ticks() * 3 / 2) % _ticks() - _ticks() / 2)::int
    FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
      AND l.classid::bigint BETWEEN base AND base + 65535
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
END
$$;

-- Milliseconds since the last heartbeat of each worker that has a session in this database.
CREATE OR REPLACE FUNCTION _pulses() RETURNS TABLE (worker int, age int)
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT t.worker, min(t.age) FROM _times_of('alive') t GROUP BY t.worker $$;

CREATE OR REPLACE VIEW workers AS
SELECT a.worker, a.host, a.port, a.is_registered, a.models, a.capacity, a.waiting, a.sessions, a.started_at, a.alive_at,
    p.age * interval '1 millisecond' AS heartbeat_age, a.version,
    -- Heartbeats are of the server that a worker has its sessions on; a standby of that has what it says of itself.
    coalesce(p.age < 5000, pg_is_in_recovery() AND a.alive_at > clock_timestamp() - interval '5 seconds') AS is_alive,
    a.precisions
FROM announcements a LEFT JOIN _pulses() p ON p.worker = a.worker
ORDER BY a.worker;
COMMENT ON VIEW workers IS
    'The workers that have announced themselves, how busy they are, and how long ago each proved that it is alive';
GRANT SELECT ON workers TO PUBLIC;

-- A worker takes the lowest number that is free. One that was at the same address before is no more, and those that
-- have not been heard of for a minute are forgotten. Without a password searches are not sent to the worker, and its
-- address is not to be unique.
CREATE OR REPLACE FUNCTION announce_worker(
    host text, port int, capacity int, password text DEFAULT NULL, options jsonb DEFAULT '{}',
    version text DEFAULT NULL) RETURNS int
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    number int;
BEGIN
    LOCK TABLE announcements IN SHARE ROW EXCLUSIVE MODE;
    SELECT w.worker INTO number FROM workers w
    WHERE (w.host, w.port) = (announce_worker.host, announce_worker.port) AND w.is_registered
        AND password IS NOT NULL AND w.heartbeat_age < interval '1 second';
    IF FOUND THEN
        PERFORM _raise('object_in_use', format('worker %s lives at %s:%s already', number, host, port),
            'Give each worker the address at which Postgres reaches it: --listen.');
    END IF;
    PERFORM dismiss_worker(a.worker) FROM announcements a
    WHERE (password IS NOT NULL AND a.is_registered
            AND (a.host, a.port) = (announce_worker.host, announce_worker.port))
        OR a.alive_at < clock_timestamp() - interval '1 minute';
    SELECT min(n) INTO number
    FROM generate_series(1, 32767) n
    WHERE n NOT IN (SELECT a.worker FROM announcements a UNION ALL SELECT p.worker FROM _pulses() p);
    INSERT INTO announcements (worker, host, port, is_registered, capacity, version)
    VALUES (number, host, port, password IS NOT NULL, capacity, version);
    IF password IS NOT NULL THEN
        PERFORM _create_server(_server_of(number), host, port, password, options);
    END IF;
    RETURN number;
END
$$;
COMMENT ON FUNCTION announce_worker IS
    'Makes a worker known, to searches too where a password is given; returns its number';

CREATE OR REPLACE FUNCTION report_worker(
    worker int, host text, port int, models text[], waiting int, sessions int, precisions jsonb DEFAULT '{}')
RETURNS boolean
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    UPDATE announcements a
    SET models = report_worker.models, waiting = report_worker.waiting, sessions = report_worker.sessions,
        precisions = report_worker.precisions, alive_at = clock_timestamp()
    WHERE (a.worker, a.host, a.port) = (report_worker.worker, report_worker.host, report_worker.port);
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION report_worker IS
    'Says how busy an announced worker is, and its models'' precisions; false where it is not known any more';

CREATE OR REPLACE FUNCTION dismiss_worker(worker int) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    DELETE FROM announcements a WHERE a.worker = dismiss_worker.worker;
    PERFORM _drop_server(_server_of(worker));
END
$$;
COMMENT ON FUNCTION dismiss_worker IS 'Has no new session go to a worker, before it stops';

CREATE OR REPLACE FUNCTION heartbeat(worker int, previous int DEFAULT NULL) RETURNS int
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    class int := _lock_class('alive', worker);
    tick int := _tick(clock_timestamp());
BEGIN
    IF tick IS DISTINCT FROM previous THEN
        PERFORM pg_advisory_lock_shared(class, tick);
        IF previous IS NOT NULL THEN
            PERFORM pg_advisory_unlock_shared(class, previous);
        END IF;
    END IF;
    PERFORM _cancel_overdue();
    RETURN tick;
END
$$;
COMMENT ON FUNCTION heartbeat IS
    'Renews a worker''s proof of life, and ends what others wait for too long; takes what the last call returned';

-- A session that connects to a worker says by a lock until when it may. Nothing in it can end what has begun, for
-- libpq waits without limit. Whoever comes by cancels it once that time is over: workers with each heartbeat, and
-- sessions that wait for a worker themselves. Only a session that is still connecting must be hit, and once: so one at
-- a time cancels, by a lock that the other looks for, and holds it until the other has heeded that. Locks are those of
-- a subtransaction which is rolled back, so that none is left behind, whenever it is that somebody cancels this
-- session.
CREATE OR REPLACE FUNCTION _cancel_overdue(_pid int) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF pg_try_advisory_xact_lock(_lock_class('cancelling', 0), _pid) AND _is_overdue(_pid) THEN
        PERFORM pg_cancel_backend(_pid);
        FOR wait IN 1..20 LOOP
            EXIT WHEN NOT _is_overdue(_pid);
            PERFORM pg_sleep(0.001);
        END LOOP;
    END IF;
    PERFORM _raise('PGR00', 'done');
EXCEPTION WHEN SQLSTATE 'PGR00' OR insufficient_privilege THEN
    NULL;  -- docs/reference/limits.md tells what a lack of rights costs
END
$$;

CREATE OR REPLACE FUNCTION _is_overdue(_pid int) RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT EXISTS (SELECT FROM _times_of('connecting') t WHERE t.pid = _pid AND t.age > 0) $$;

CREATE OR REPLACE FUNCTION _cancel_overdue() RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM _cancel_overdue(t.pid) FROM _times_of('connecting') t WHERE t.age > 0 AND t.pid <> pg_backend_pid();
END
$$;

-- The workers that a search may be sent to, with the milliseconds since each proved its life (NULL: it can't), how busy
-- it is, and whether sessions are stuck that connect to it. One that has no session here, because this is a standby or
-- the server has just been restarted, is believed by what it last wrote in its announcement. Nobody knows who is behind
-- the address that set_worker wrote: it is worth a try as long as any worker lives, or none beats here at all.
CREATE OR REPLACE FUNCTION _reachable_workers()
RETURNS TABLE (worker int, age int, load float8, is_stuck boolean)
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$
    WITH pulses AS MATERIALIZED (SELECT * FROM _pulses()),
        stuck AS MATERIALIZED (
            SELECT t.worker FROM unnest('{connecting,dialling}'::text[]) p, _times_of(p) t WHERE t.age > -150)
    SELECT a.worker,
        CASE WHEN p.worker IS NULL AND clock_timestamp() - a.alive_at < interval '3 seconds' THEN 0 ELSE p.age END,
        (1.0 + a.waiting + a.sessions) / a.capacity,
        a.worker IN (SELECT s.worker FROM stuck s)
    FROM announcements a LEFT JOIN pulses p ON p.worker = a.worker
    WHERE a.is_registered
    UNION ALL
    SELECT 0, coalesce((SELECT min(p.age) FROM pulses p), 0), 1, false
    FROM pg_foreign_server s WHERE s.srvname = _server_of(0)
$$;

-- Chooses a worker that has not been tried: by chance, one that is less busy more often; NULL where there is none. A
-- connection attempt to a stopped process hangs, for its kernel accepts. So its heartbeat must be younger than this
-- call. One that keeps us waiting gives way to any other that has proved its life meanwhile.
CREATE OR REPLACE FUNCTION _choose_worker(_tried int[], _deadline timestamptz) RETURNS int
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    waited int := 0;
    preferred int;
    proven int;
BEGIN
    SELECT r.worker INTO preferred FROM _reachable_workers() r
    WHERE r.worker <> ALL (_tried) AND r.age IS NOT NULL
    ORDER BY r.worker = 0, r.is_stuck, r.age > 250, -ln(1 - random()) * r.load LIMIT 1;
    WHILE preferred IS NOT NULL LOOP
        SELECT r.worker INTO proven FROM _reachable_workers() r
        WHERE r.worker <> ALL (_tried) AND r.age <= waited AND (r.worker = preferred OR waited > 150)
        ORDER BY r.worker = preferred DESC, r.worker = 0, r.is_stuck, random() LIMIT 1;
        EXIT WHEN proven IS NOT NULL OR waited > 1000 OR clock_timestamp() >= _deadline;
        PERFORM pg_sleep(CASE WHEN waited < 60 THEN 0.002 ELSE 0.02 END);
        IF waited > 60 THEN
            PERFORM _cancel_overdue();
        END IF;
        waited := extract(epoch FROM clock_timestamp() - started) * 1000;
    END LOOP;
    RETURN proven;
END
$$;

-- What a worker's role may do, if it is neither the owner of pgrerank's tables nor a superuser: what follows is all. It
-- can change no setting, model, source or function.
CREATE OR REPLACE FUNCTION _worker_grants() RETURNS TABLE (privileges text, object text)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    VALUES ('SELECT, INSERT, UPDATE, DELETE', 'pending'),
        ('USAGE', 'SEQUENCE ticket'),
        ('SELECT, INSERT, UPDATE, DELETE', 'setbacks'),
        ('SELECT, INSERT, UPDATE, DELETE', 'reconciliations'),
        ('SELECT, UPDATE', 'word_statistics'),
        ('SELECT, INSERT, UPDATE, DELETE', 'announcements'),
        ('UPDATE (generation)', 'rerankers'),
        ('UPDATE (projection, retired_at)', 'generations'),
        ('SELECT, INSERT', 'projections'),
        ('SELECT, INSERT, UPDATE, DELETE', 'calibrations'),
        ('SELECT, DELETE', 'searches'),
        ('SELECT, INSERT, UPDATE, DELETE', 'counted_searches'),
        ('SELECT, INSERT, UPDATE, DELETE', 'summed_searches'),
        ('SELECT, INSERT, UPDATE, DELETE', 'checked_queries'),
        ('SELECT', 'stats_resets'),
        ('SELECT', 'stats'),
        ('SELECT', 'status'),
        ('SELECT', 'queries'),
        ('SELECT', 'qrels'),
        ('SELECT', 'feedback'),
        ('EXECUTE', 'FUNCTION _sync'),
        ('EXECUTE', 'FUNCTION _drop_retired')
$$;

CREATE OR REPLACE FUNCTION grant_worker(role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    granted record;
BEGIN
    PERFORM _check_right('grant', 'all');
    IF NOT (SELECT r.rolbypassrls OR r.rolsuper FROM pg_roles r WHERE r.oid = role) THEN
        PERFORM _raise('insufficient_privilege', format('role %s is subject to row-level security: it would take '
            'documents that it does not see for deleted ones', role),
            format('Have an administrator run: ALTER ROLE %s BYPASSRLS;', role));
    END IF;
    FOR granted IN SELECT * FROM _worker_grants() LOOP
        EXECUTE format('GRANT %s ON %s TO %s', granted.privileges, granted.object, role);
    END LOOP;
    PERFORM _grant_side_table(t.name, role)
    FROM generations g, unnest(_keyed_tables(g) || _side_table(g, 'terms')) t (name);
END
$$;
COMMENT ON FUNCTION grant_worker IS
    'Lets a role run workers that owns nothing of pgrerank; of each source it needs SELECT, and UPDATE on a column';
