-- Tenants: documents that a column of the source keeps apart. A search that its filter confines to one of them reads
-- that one's documents only: all of them or, where they are many, by an HNSW index of their own.

-- The type of the column, which side tables repeat; text where there is none.
CREATE OR REPLACE FUNCTION _tenant_type(_source regclass, _generation generations) RETURNS regtype
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    of_type regtype := 'text';
BEGIN
    IF _generation.tenant_column IS NOT NULL THEN
        of_type := (_column_type(_source, _generation.tenant_column)).type;
        IF of_type <> ALL ('{bigint,integer,smallint,uuid,text,character varying}'::regtype[]) THEN
            PERFORM _raise('datatype_mismatch', format('tenant_column %s.%I is of type %s: pgrerank wants bigint, '
                'integer, smallint, uuid or text', _source, _generation.tenant_column, of_type));
        END IF;
    END IF;
    RETURN of_type;
END
$$;

-- Writes the tenants of documents that have changed theirs and nothing else.
CREATE OR REPLACE FUNCTION _store_tenants(_reranker rerankers, _generation generations, _keys text[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    stored text;
BEGIN
    FOREACH stored IN ARRAY CASE WHEN _generation.tenant_column IS NOT NULL
        THEN ARRAY[_side_table(_generation), _side_table(_generation, 'passages')] ELSE '{}' END
    LOOP
        EXECUTE format($sql$
            UPDATE %s s SET tenant = d.tenant FROM %s d
            WHERE s.key = ANY ($1::%s[]) AND %s AND s.tenant IS DISTINCT FROM d.tenant
            $sql$, stored, _documents(_generation), _reranker.key_type, _same_key(_reranker, 'd.key', 's.key'))
        USING _keys;
    END LOOP;
END
$$;

-- The tenant to which a filter confines a search, as a literal; NULL where it does not.
CREATE OR REPLACE FUNCTION _tenant_of(_reranker rerankers, _generation generations, _filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    value jsonb := _filter -> _generation.tenant_column;
BEGIN
    IF jsonb_typeof(value) = 'object' AND value - '=' = '{}' THEN
        value := value -> '=';
    END IF;
    IF jsonb_typeof(value) IN ('string', 'number') THEN
        RETURN _filter_literal(_filter_target(_reranker.source, _generation.tenant_column), value);
    END IF;
    RETURN NULL;
END
$$;

-- The predicate that confines a search to one tenant, besides the rest of its filter. The side table may be behind the
-- source, which is asked too, in a way that hides from the planner that it has been answered already.
CREATE OR REPLACE FUNCTION _tenant_predicate(_generation generations, _tenant_literal text, _rest text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('s.tenant = %2$s AND coalesce(d.%1$I = %2$s, false) AND %3$s',
        _generation.tenant_column, _tenant_literal, _rest)
    WHERE _tenant_literal IS NOT NULL
$$;

-- The name of a tenant's own index. A generation's name is no longer than 52 characters, as long as there are fewer
-- than ten million.
CREATE OR REPLACE FUNCTION _tenant_index(_generation generations, _tenant text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('%s_%s_t_%s', _generation.reranker, _generation.number, left(md5(_tenant), 10)) $$;

-- How many documents a tenant's own index has; NULL where it has none that can be used.
CREATE OR REPLACE FUNCTION _indexed_of_tenant(_generation generations, _tenant_literal text) RETURNS float8
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    tenant text;
BEGIN
    EXECUTE format('SELECT (%s)::text', _tenant_literal) INTO tenant;
    RETURN (
        SELECT greatest(c.reltuples, 0) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
        WHERE c.oid = to_regclass(format('pgrerank.%I', _tenant_index(_generation, tenant))) AND i.indisvalid);
END
$$;

-- What HNSW compares embeddings by, with its schema: for statements that others run.
CREATE OR REPLACE FUNCTION _operator_class(_distance text) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('%I.halfvec_%s_ops', n.nspname, CASE _distance WHEN 'inner_product' THEN 'ip' ELSE _distance END)
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
$$;

-- The indexes that one generation's tenants lack or need no more. One that a broken statement left behind is dropped,
-- unless somebody is at work on the table.
CREATE OR REPLACE FUNCTION _tenant_index_changes(_reranker rerankers, _generation generations)
RETURNS TABLE (tenant text, passages bigint, statement text)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    side_table text := _side_table(_generation, 'passages');
BEGIN
    RETURN QUERY EXECUTE format($sql$
        WITH counted AS MATERIALIZED (
            SELECT s.tenant::text AS tenant, count(*) AS passages FROM %1$s s
            WHERE s.tenant IS NOT NULL GROUP BY s.tenant),
        size AS (SELECT _unindexed_up_to($1.candidates, sum(c.passages)) AS most FROM counted c),
        large AS (
            SELECT c.*, s.most, _tenant_index($2, c.tenant) AS name FROM counted c, size s
            WHERE c.passages > s.most / 2),
        present AS (
            SELECT c.relname::text AS name, i.indisvalid AS is_valid
            FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE i.indrelid = $3 AND c.relname ~ '_t_[0-9a-f]{10}$')
        SELECT l.tenant, l.passages, CASE WHEN p.name IS NULL
            THEN format('CREATE INDEX CONCURRENTLY IF NOT EXISTS %%I ON %1$s USING hnsw (embedding %%s) WHERE ',
                l.name, _operator_class($1.distance)) || format('tenant = %%L::%%s', l.tenant, $4)
            ELSE format('DROP INDEX CONCURRENTLY IF EXISTS pgrerank.%%I', p.name) END
        FROM large l FULL JOIN present p ON p.name = l.name
        WHERE (p.name IS NULL AND l.passages > l.most) OR (p.is_valid AND l.name IS NULL)
            OR (NOT p.is_valid AND NOT EXISTS (
                SELECT FROM pg_locks k WHERE k.relation = $3 AND k.mode = 'ShareUpdateExclusiveLock'))
        ORDER BY l.passages DESC NULLS FIRST
        $sql$, side_table)
    USING _reranker, _generation, side_table::regclass, (_column_type(side_table::regclass, 'tenant')).type;
END
$$;

-- Statements rather than deeds, for an index is made and dropped concurrently only outside of a transaction.
CREATE OR REPLACE FUNCTION tenant_index_changes(reranker text DEFAULT NULL)
RETURNS TABLE (reranker text, generation int, tenant text, passages bigint, statement text)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT g.reranker, g.number, c.*
    FROM rerankers r JOIN generations g ON g.reranker = r.name, _tenant_index_changes(r, g) c
    WHERE (tenant_index_changes.reranker IS NULL OR r.name = tenant_index_changes.reranker)
      AND g.tenant_column IS NOT NULL AND g.retired_at IS NULL
$$;
COMMENT ON FUNCTION tenant_index_changes IS
    'Statements that give large tenants an HNSW index of their own, and take it from those that are large no more; '
    'workers run them, each outside of a transaction';
