-- As an extension: pg_dump takes these tables' rows along. Side tables, search functions and triggers are no members of
-- it, and are dumped like the user's own.

DO $$
DECLARE
    relation regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank') THEN
        FOREACH relation IN ARRAY '{models,rerankers,generations,projections,pending,ticket,feedback,feedback_id_seq,queries,qrels,searches,searches_id_seq}'::regclass[] LOOP
            PERFORM pg_extension_config_dump(relation, '');
        END LOOP;
    END IF;
END
$$;
