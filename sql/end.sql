-- What goes after them: the native kernel where the server has it, and the transaction's own settings.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank_native')
        AND EXISTS (SELECT FROM pg_available_extensions e WHERE e.name = 'pgrerank_native')
        AND (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        CREATE EXTENSION pgrerank_native;
    END IF;
END
$$;

SELECT set_config('search_path', current_setting('pgrerank.outer_search_path'), true),
    set_config('client_min_messages', current_setting('pgrerank.outer_messages'), true);
