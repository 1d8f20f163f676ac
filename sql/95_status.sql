-- How far the encoding is.

-- How many rows a relation has; NULL where they can't be counted, as it is locked or broken.
CREATE OR REPLACE FUNCTION _counted(_relation text) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT SET lock_timeout = '100ms'
AS $$
DECLARE
    counted bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s', _relation) INTO counted;
    RETURN counted;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION _status() RETURNS TABLE (
    reranker text, source regclass, generation int, next_generation int, source_rows bigint, encoded bigint,
    pending bigint, failed bigint, oldest_pending interval, last_error text, previous_generation int,
    previous_until timestamptz, paused_until timestamptz, compared_at timestamptz, calibrated_at timestamptz,
    passages bigint
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers;
BEGIN
    FOR r IN SELECT * FROM rerankers x ORDER BY x.name LOOP
        reranker := r.name;
        source := r.source;
        generation := r.generation;
        next_generation := nullif((_newest_generation(r.name)).number, r.generation);
        SELECT g.number, g.retired_at + r.grace_period INTO previous_generation, previous_until
        FROM generations g
        WHERE g.reranker = r.name AND g.retired_at IS NOT NULL ORDER BY g.retired_at DESC LIMIT 1;
        source_rows := _counted(r.source::text);
        encoded := _counted(_side_table(r.name, coalesce(next_generation, r.generation)));
        passages := _counted(_side_table(r.name, coalesce(next_generation, r.generation), 'passages'));
        SELECT count(*) FILTER (WHERE p.failed_at IS NULL), count(*) FILTER (WHERE p.failed_at IS NOT NULL),
            now() - min(p.enqueued_at) FILTER (WHERE p.failed_at IS NULL),
            (array_agg(p.key || ': ' || p.last_error ORDER BY p.failed_at DESC NULLS LAST)
                FILTER (WHERE p.last_error IS NOT NULL))[1]
        INTO pending, failed, oldest_pending, last_error
        FROM pending p WHERE (p.reranker, p.generation) = (r.name, coalesce(next_generation, r.generation));
        SELECT max(s.until), coalesce((array_agg(s.error ORDER BY s.until DESC))[1], last_error)
        INTO paused_until, last_error FROM setbacks s WHERE s.reranker = r.name AND s.failures > 0;
        IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = r.source) THEN
            last_error := format('the source table has been dropped: call pgrerank.drop_reranker(%L)', r.name);
        END IF;
        SELECT c.whole_at INTO compared_at
        FROM reconciliations c WHERE (c.reranker, c.generation) = (r.name, r.generation);
        calibrated_at := _calibrated_at(r);
        RETURN NEXT;
    END LOOP;
END
$$;

CREATE OR REPLACE VIEW status AS SELECT * FROM _status();
COMMENT ON VIEW status IS
    'Each reranker''s source rows, encoded and pending documents, failures with the last error; of the next generation '
    'while one is being made; the generation that rollback_reranker goes back to; when one that fails is tried again; '
    'when all documents were last compared with what is stored of them; when relevance was calibrated for the '
    'generation and cross-encoder in use; passages that are encoded';
