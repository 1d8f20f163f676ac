-- What is done last, once all is defined.

-- As an extension: pg_dump takes these tables' rows along. Side tables, search functions and triggers are no members of
-- it, and are dumped like the user's own.
DO $$
DECLARE
    relation regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank') THEN
        FOREACH relation IN ARRAY ARRAY[
            'models', 'rerankers', 'generations', 'partitions', 'projections', 'calibrations', 'pending', 'ticket',
            'setbacks', 'reconciliations', 'word_statistics', 'feedback', 'feedback_id_seq', 'queries', 'qrels',
            'searches', 'searches_id_seq']::regclass[]
        LOOP
            PERFORM pg_extension_config_dump(relation, '');
        END LOOP;
    END IF;
END
$$;

-- Rerankers of an older version get their search functions anew, with the arguments and columns of this one. Made
-- while an extension is being upgraded, it would become a member of it.
DO $$
DECLARE
    is_extension boolean := EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pgrerank');
    reranker rerankers;
BEGIN
    FOR reranker IN SELECT * FROM rerankers r ORDER BY r.name LOOP
        IF is_extension THEN
            EXECUTE format('ALTER EXTENSION pgrerank ADD FUNCTION pgrerank.%I', reranker.name || '_search');
            EXECUTE format('ALTER EXTENSION pgrerank ADD FUNCTION pgrerank.%I', reranker.name || '_search_many');
        END IF;
        PERFORM _create_search(reranker);
        IF is_extension THEN
            EXECUTE format('ALTER EXTENSION pgrerank DROP FUNCTION pgrerank.%I', reranker.name || '_search');
            EXECUTE format('ALTER EXTENSION pgrerank DROP FUNCTION pgrerank.%I', reranker.name || '_search_many');
        END IF;
    END LOOP;
END
$$;

-- Side tables that were restored without their privileges, by pg_dump --no-acl, are opened: policies protect them.
DO $$
DECLARE
    side_table regclass;
BEGIN
    FOR side_table IN
        SELECT c.oid
        FROM generations g, unnest(_keyed_tables(g) || _side_table(g, 'terms')) t (name),
            LATERAL (SELECT to_regclass(t.name) UNION SELECT * FROM _leaves(to_regclass(t.name))) w (part), pg_class c
        WHERE c.oid = w.part AND c.relrowsecurity AND NOT has_table_privilege('public', c.oid, 'SELECT')
    LOOP
        EXECUTE format('GRANT SELECT ON %s TO PUBLIC', side_table);
    END LOOP;
END
$$;
