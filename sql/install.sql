-- The plain install's own beginning (the extension's control file does the same by `requires` and `schema`).
-- One transaction runs this file and then the numbered ones. Every function is created with
-- SET search_path FROM CURRENT, so what is set here is what they are pinned to.

SET LOCAL client_min_messages = warning;

DO $$
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'Postgres % is too old: pgrerank wants 15 or newer', current_setting('server_version')
            USING ERRCODE = 'feature_not_supported';
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'database % has encoding %: pgrerank wants UTF8', current_database(), current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0.';
    END IF;
END
$$;

CREATE SCHEMA IF NOT EXISTS pgrerank;

DO $$
DECLARE
    wanted record;
    version text;
BEGIN
    FOR wanted IN SELECT * FROM (VALUES ('vector', NULL), ('dblink', 'pgrerank')) w (extension, home)
    LOOP
        IF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = wanted.extension) THEN
            BEGIN
                EXECUTE format('CREATE EXTENSION %I', wanted.extension) || coalesce(' SCHEMA ' || wanted.home, '');
            EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
                RAISE EXCEPTION 'extension % is not installed in database % and can''t be created by role %: %',
                    wanted.extension, current_database(), current_user, SQLERRM
                    USING ERRCODE = SQLSTATE,
                          HINT = format('Have an administrator run: CREATE EXTENSION %I;', wanted.extension);
            END;
        END IF;
    END LOOP;

    SELECT extversion INTO version FROM pg_extension WHERE extname = 'vector';
    IF string_to_array(substring(version FROM '^\d+\.\d+'), '.')::int[] < ARRAY[0, 7] THEN
        RAISE EXCEPTION 'extension vector has version %: pgrerank wants 0.7 or newer', version
            USING ERRCODE = 'feature_not_supported', HINT = 'Run: ALTER EXTENSION vector UPDATE;';
    END IF;

    PERFORM set_config('search_path', (
        SELECT 'pgrerank, ' || string_agg(DISTINCT quote_ident(n.nspname), ', ') FILTER (WHERE n.nspname <> 'pgrerank') || ', pg_temp'
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname IN ('vector', 'dblink')), true);
END
$$;
