-- What the server must be.

DO $$
DECLARE
    version text := (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'vector');
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'Postgres % is too old: pgrerank wants 15 or newer', current_setting('server_version')
            USING ERRCODE = 'feature_not_supported';
    ELSIF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'database % has encoding %: pgrerank wants UTF8',
            current_database(), current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create the database with ENCODING ''UTF8'' TEMPLATE template0.';
    ELSIF string_to_array(substring(version FROM '^\d+\.\d+'), '.')::int[] < ARRAY[0, 8] THEN
        RAISE EXCEPTION 'extension vector has version %: pgrerank wants 0.8 or newer', version
            USING ERRCODE = 'feature_not_supported', HINT = 'Run: ALTER EXTENSION vector UPDATE;';
    END IF;
END
$$;
