-- Source table to queue: statement-level triggers with transition tables, so that a bulk statement costs one statement.

-- SECURITY DEFINER: who writes documents needs no right on the queue. It reads transition tables and our own tables only.
CREATE OR REPLACE FUNCTION _sync() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers := _reranker(TG_ARGV[0]);
    g generations;
    rows_of text := format('SELECT %I AS key, (%%s) AS content FROM %%s', r.key_column);
BEGIN
    FOR g IN SELECT * FROM generations x WHERE x.reranker = r.name ORDER BY x.number LOOP
        CASE TG_OP
        WHEN 'INSERT' THEN
            EXECUTE format(_enqueue_sql(r.name, g.number), format('SELECT %I::text AS key FROM new_rows', r.key_column));
        WHEN 'UPDATE' THEN
            EXECUTE format(_enqueue_sql(r.name, g.number), format(
                'SELECT n.key::text FROM (%s) n LEFT JOIN (%s) o USING (key) WHERE o.key IS NULL OR n.content IS DISTINCT FROM o.content',
                format(rows_of, g.text_expression, 'new_rows'), format(rows_of, g.text_expression, 'old_rows')));
            EXECUTE format(_forget_sql(r.name, g.number), format(
                'SELECT o.%1$I AS key FROM old_rows o WHERE NOT EXISTS (SELECT FROM new_rows n WHERE n.%1$I = o.%1$I)', r.key_column));
        WHEN 'DELETE' THEN
            EXECUTE format(_forget_sql(r.name, g.number), format('SELECT %I AS key FROM old_rows', r.key_column));
        WHEN 'TRUNCATE' THEN
            EXECUTE format('TRUNCATE %s', concat_ws(', ', _side(r.name, g.number), (
                SELECT string_agg(_parts(r.name, g.number, t), ', ') FROM unnest(_tiers(r.name, g.number)) t)));
            DELETE FROM pending p WHERE (p.reranker, p.generation) = (r.name, g.number);
        END CASE;
    END LOOP;
    RETURN NULL;
END
$$;

-- Statement with one %s: a query that yields keys as text.
CREATE OR REPLACE FUNCTION _enqueue_sql(reranker text, generation int) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format(
        'INSERT INTO pending (reranker, generation, key) SELECT %L, %s, k.key FROM (%%s) k ORDER BY k.key '
        'ON CONFLICT (reranker, generation, key) DO UPDATE SET ticket = DEFAULT, enqueued_at = DEFAULT, attempts = DEFAULT, '
        'claimed_by = NULL, claimed_until = NULL, failed_at = NULL, last_error = NULL', reranker, generation)
$$;

-- Statement with one %s: a query that yields keys in the source's own type.
CREATE OR REPLACE FUNCTION _forget_sql(reranker text, generation int) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT format(
        'WITH gone AS MATERIALIZED (%%s), %s'
        'dropped AS (DELETE FROM %s s USING gone WHERE s.key = gone.key) '
        'DELETE FROM pending p USING gone WHERE p.reranker = %L AND p.generation = %s AND p.key = gone.key::text',
        (SELECT string_agg(format('%I AS (DELETE FROM %s p USING gone WHERE p.key = gone.key), ', t, _parts(reranker, generation, t)), '')
         FROM unnest(_tiers(reranker, generation)) t),
        _side(reranker, generation), reranker, generation)
$$;

-- Enqueues the documents whose stored vectors are missing or made from another text, forgets vectors whose document is
-- gone, and returns how many wait. With retry_failed, documents that failed get their tries again. To a role that
-- row-level security hides documents from, they would seem gone: row_security = off makes that an error.
CREATE OR REPLACE FUNCTION enqueue(name text, retry_failed boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    r rerankers := _reranker(name);
    g generations;
    enqueued bigint := 0;
    counted bigint;
BEGIN
    FOR g IN SELECT * FROM generations x WHERE x.reranker = r.name ORDER BY x.number LOOP
        EXECUTE format(_forget_sql(r.name, g.number), format(
            'SELECT s.key FROM %s s WHERE NOT EXISTS (SELECT FROM %s d WHERE d.%I = s.key)', _side(r.name, g.number), r.source, r.key_column));
        EXECUTE format(_enqueue_sql(r.name, g.number), format(
            'SELECT d.key::text FROM (SELECT %I AS key, _content_hash(%s) AS hash FROM %s) d LEFT JOIN %s s USING (key) '
            'WHERE s.content_hash IS DISTINCT FROM d.hash AND NOT EXISTS ('
            'SELECT FROM pending p WHERE p.reranker = %L AND p.generation = %s AND p.key = d.key::text AND (p.failed_at IS NULL OR NOT %L))',
            r.key_column, g.text_expression, r.source, _side(r.name, g.number), r.name, g.number, retry_failed));
        SELECT count(*) INTO counted FROM pending p
        WHERE (p.reranker, p.generation) = (r.name, g.number) AND p.failed_at IS NULL;
        enqueued := enqueued + counted;
    END LOOP;
    RETURN enqueued;
END
$$;
COMMENT ON FUNCTION enqueue IS 'Enqueues whatever is not encoded or out of date; returns how many documents wait';

-- Names the text a vector was made from; NULL counts as empty.
CREATE OR REPLACE FUNCTION _content_hash(content text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT sha256(convert_to(coalesce(content, ''), 'UTF8')) $$;
