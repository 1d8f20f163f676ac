-- What goes before the files of an install or an upgrade that is no extension's (an extension has `requires` and
-- `schema` in its control file). All run in one transaction. Every function is created with SET search_path FROM
-- CURRENT, so what is set here is what they are pinned to; end.sql gives the transaction its own settings back.

SELECT set_config('pgrerank.outer_search_path', current_setting('search_path'), true),
    set_config('pgrerank.outer_messages', current_setting('client_min_messages'), true),
    set_config('client_min_messages', 'warning', true);

DO $$
DECLARE
    version text := (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'pgrerank');
BEGIN
    IF version IS NOT NULL THEN
        RAISE EXCEPTION 'database % has pgrerank % as an extension', current_database(), version
            USING ERRCODE = 'duplicate_object', HINT = 'Bring it up to date there: ALTER EXTENSION pgrerank UPDATE;';
    END IF;
END
$$;

CREATE SCHEMA IF NOT EXISTS pgrerank;

DO $$
DECLARE
    wanted record;
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

    PERFORM set_config('search_path', (
        SELECT concat_ws(', ', 'pgrerank',
            string_agg(DISTINCT quote_ident(n.nspname), ', ') FILTER (WHERE n.nspname <> 'pgrerank'), 'pg_temp')
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname IN ('vector', 'dblink')), true);
END
$$;
