-- Side tables that are partitioned like their source: a partition for each of the source's that has rows itself, by a
-- number of ours, whatever bounds or levels the source has. A search that its filter confines to one reads that one's
-- tables alone; one that has gone is dropped whole.

CREATE OR REPLACE FUNCTION _is_partitioned(_source regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = _source AND c.relkind = 'p') $$;

-- A table's partitions that have rows themselves; the table where it is not partitioned. Unlike pg_partition_tree, it
-- waits for nobody who has one of them locked.
CREATE OR REPLACE FUNCTION _leaves(_table regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    WITH RECURSIVE tree AS (
        SELECT c.oid, c.relkind FROM pg_class c WHERE c.oid = _table
        UNION ALL
        SELECT c.oid, c.relkind
        FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid
        WHERE t.relkind = 'p')
    SELECT t.oid::regclass FROM tree t WHERE t.relkind <> 'p'
$$;

-- In which partition a document is, as one more column of a statement or, by the number of its table, of the
-- documents.
CREATE OR REPLACE FUNCTION _partition(_generation generations) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT CASE WHEN _generation.partitioned THEN ', partition' ELSE '' END $$;

CREATE OR REPLACE FUNCTION _partition_sql(_reranker rerankers, _generation generations) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _generation.partitioned THEN format(', (SELECT p.number FROM pgrerank.partitions p WHERE '
        'p.reranker OPERATOR(pg_catalog.=) %L AND p.leaf OPERATOR(pg_catalog.=) s.tableoid) AS partition',
        _reranker.name) ELSE '' END
$$;

-- How large a row of a side table may get before Postgres moves parts of it elsewhere; nothing for most kinds.
CREATE OR REPLACE FUNCTION _storage_of(_kind text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _kind IN ('tokens', 'bits') THEN 'WITH (toast_tuple_target = 8160)'
        WHEN _kind = 'words' THEN 'WITH (toast_tuple_target = 256)' ELSE '' END
$$;

-- The end of a side table's definition: what its rows are told apart by, and how they are stored or partitioned.
CREATE OR REPLACE FUNCTION _stored_by(_generation generations, _columns text, _kind text DEFAULT NULL) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _generation.partitioned
        THEN format('partition int, PRIMARY KEY (%s, partition)) PARTITION BY LIST (partition)', _columns)
        ELSE format('PRIMARY KEY (%s)) %s', _columns, _storage_of(_kind)) END
$$;

-- A generation as one of its partitions has it; as it is where there are others, or all.
CREATE OR REPLACE FUNCTION _confined(_generation generations, _partitions int[]) RETURNS generations
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF cardinality(_partitions) = 1 THEN
        _generation.partition := _partitions[1];
    END IF;
    RETURN _generation;
END
$$;

-- Gives a generation's side tables the partitions that they lack.
CREATE OR REPLACE FUNCTION _create_partitions(_reranker rerankers, _generation generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    made record;
BEGIN
    FOR made IN
        SELECT p.number, t.kind, _side_table(_generation, t.kind) AS whole,
            _side_table(_confined(_generation, ARRAY[p.number]), t.kind) AS part
        FROM partitions p CROSS JOIN unnest(ARRAY[NULL, 'passages', 'words'] || _tiers(_generation)) t (kind)
        WHERE p.reranker = _reranker.name ORDER BY p.number
    LOOP
        CONTINUE WHEN to_regclass(made.part) IS NOT NULL;
        EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL) %s', made.part, made.whole, _storage_of(made.kind));
        PERFORM _protect(made.part, _reranker, _generation, format('%s, partition %s',
            obj_description(made.whole::regclass, 'pg_class'), made.number));
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES IN (%s)', made.whole, made.part, made.number);
    END LOOP;
END
$$;

-- Drops what is stored of a partition, and returns whether it could: where a search has it locked, all its rows are
-- deleted, and the tables are dropped later. That of the documents comes first, which searches lock.
CREATE OR REPLACE FUNCTION _drop_partition(_reranker text, _number int) RETURNS boolean
LANGUAGE plpgsql
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
DECLARE
    tables text[] := ARRAY(
        SELECT t.name
        FROM generations g, unnest(_keyed_tables(_confined(g, ARRAY[_number]))) WITH ORDINALITY t (name, place)
        WHERE g.reranker = _reranker AND to_regclass(t.name) IS NOT NULL ORDER BY t.place, g.number);
    stored text;
BEGIN
    FOREACH stored IN ARRAY tables LOOP
        EXECUTE format('DROP TABLE %s', stored);
    END LOOP;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    FOREACH stored IN ARRAY tables LOOP
        EXECUTE format('DELETE FROM %s', stored);
    END LOOP;
    RETURN false;
END
$$;

-- Whether it is time to drop what is stored of a partition, which could not be done then.
CREATE OR REPLACE FUNCTION _is_due(_tried_at timestamptz) RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path FROM CURRENT
AS $$ SELECT coalesce(_tried_at < clock_timestamp() - interval '2 seconds', true) $$;

-- Follows partitions of a source that have come, or gone, and has all of it compared again. Those that have gone are
-- dropped first, for their rows may be in another now. SECURITY DEFINER: a worker need not own the side tables. It
-- takes nothing from its caller but a name.
CREATE OR REPLACE FUNCTION _follow_partitions(_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '1s'
AS $$
DECLARE
    stored rerankers;
    gone partitions;
    is_other boolean := false;
BEGIN
    IF NOT EXISTS (SELECT FROM generations g WHERE g.reranker = _name AND g.partitioned) OR NOT EXISTS (
        SELECT FROM rerankers r, LATERAL (
            SELECT FROM _leaves(r.source) l (leaf)
            FULL JOIN (SELECT p.leaf, p.tried_at FROM partitions p WHERE p.reranker = r.name) p USING (leaf)
            WHERE p.leaf IS NULL OR (l.leaf IS NULL AND _is_due(p.tried_at))) changed
        WHERE r.name = _name) THEN
        RETURN;
    END IF;
    SELECT * INTO stored FROM rerankers r WHERE r.name = _name FOR NO KEY UPDATE;
    FOR gone IN
        SELECT * FROM partitions p
        WHERE p.reranker = _name AND p.leaf NOT IN (SELECT l.leaf FROM _leaves(stored.source) l (leaf))
          AND _is_due(p.tried_at)
    LOOP
        is_other := is_other OR gone.tried_at IS NULL;
        UPDATE partitions p SET tried_at = clock_timestamp() WHERE (p.reranker, p.number) = (_name, gone.number);
        DELETE FROM partitions p
        WHERE (p.reranker, p.number) = (_name, gone.number) AND _drop_partition(_name, gone.number);
    END LOOP;
    INSERT INTO partitions (reranker, number, leaf)
    SELECT _name, row_number() OVER (ORDER BY l.leaf) + coalesce((
        SELECT max(p.number) FROM partitions p WHERE p.reranker = _name), 0), l.leaf
    FROM _leaves(stored.source) l (leaf)
    WHERE NOT EXISTS (SELECT FROM partitions p WHERE (p.reranker, p.leaf) = (_name, l.leaf));
    IF FOUND OR is_other THEN
        PERFORM _create_partitions(stored, g) FROM generations g WHERE g.reranker = _name AND g.partitioned;
        UPDATE reconciliations c SET after_key = NULL, whole_at = NULL WHERE c.reranker = _name;
    END IF;
END
$$;

-- Those partitions that a plan for the source reads; NULL where it reads all.
CREATE OR REPLACE FUNCTION _partitions_in(_reranker rerankers, _plan jsonb) RETURNS int[]
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN NOT bool_and(p.is_read) THEN
        coalesce(array_agg(p.number ORDER BY p.number) FILTER (WHERE p.is_read), '{}') END
    FROM (
        SELECT p.number, (n.nspname, c.relname) IN (
            SELECT s.node ->> 'Schema', s.node ->> 'Relation Name'
            FROM jsonb_path_query(_plan, 'strict $.** ? (exists(@."Relation Name"))') s (node)) AS is_read
        FROM partitions p JOIN pg_class c ON c.oid = p.leaf JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE p.reranker = _reranker.name) p
$$;

-- How many rows a table has by Postgres' estimates, with those of its partitions; NULL where it doesn't know.
CREATE OR REPLACE FUNCTION _estimated_rows(_table regclass) RETURNS float8
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT sum(c.reltuples) FROM _leaves(_table) l (leaf) JOIN pg_class c ON c.oid = l.leaf
    WHERE c.relkind = 'r' AND c.reltuples >= 0
$$;
