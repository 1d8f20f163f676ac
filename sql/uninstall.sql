-- Removes everything that pgrerank made, triggers on source tables included; source tables stay.

DO $$
DECLARE
    server name;
BEGIN
    FOR server IN SELECT s.srvname FROM pg_foreign_server s WHERE s.srvname ~ '^pgrerank_worker(_\d+)?$' LOOP
        EXECUTE format('DROP SERVER %I CASCADE', server);
    END LOOP;
END
$$;
DROP SCHEMA IF EXISTS pgrerank CASCADE;
