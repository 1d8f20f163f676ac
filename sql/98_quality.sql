-- Continuous checks: workers that have nothing else to do repeat what people have searched for, one query at a time,
-- and find out whether HNSW still finds what an exact search does, whether each stage improves the order, and whether
-- vectors are those of the present texts. Such a search gives way to all others (pgrerank.background).

-- What a query has told, found by its hash: the log forgets queries, and so these are not kept.
CREATE TABLE IF NOT EXISTS checked_queries (
    reranker text NOT NULL,
    generation int NOT NULL,
    query_hash text NOT NULL,
    settings_hash text NOT NULL,
    hnsw_recall double precision,
    gains jsonb,
    stale double precision,
    checked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (reranker, generation, query_hash),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
COMMENT ON TABLE checked_queries IS 'What single queries told of a reranker, when a worker searched for them once more';
COMMENT ON COLUMN checked_queries.settings_hash IS 'Of the reranker''s settings then: with others all is checked anew';
COMMENT ON COLUMN checked_queries.hnsw_recall IS 'The share of the nearest documents that HNSW found';
COMMENT ON COLUMN checked_queries.gains IS 'By stage, nDCG@10 after it less nDCG@10 before it';
COMMENT ON COLUMN checked_queries.stale IS 'The share of documents found whose vectors are of another text';
GRANT SELECT ON checked_queries TO pg_monitor;

CREATE OR REPLACE FUNCTION _settings_hash(_reranker rerankers) RETURNS text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT md5((to_jsonb(_reranker) - '{source_names,log_sample,log_retention,grace_period}'::text[])::text) $$;

-- Sets of judgements name no reranker: those that one was calibrated by are its own, and all where there is one source.
CREATE OR REPLACE FUNCTION _sets_of(_reranker rerankers) RETURNS SETOF text
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT DISTINCT q.qrels_set FROM queries q
    WHERE (SELECT count(DISTINCT r.source) = 1 FROM rerankers r)
       OR q.qrels_set IN (SELECT c.qrels_set FROM calibrations c WHERE c.reranker = _reranker.name)
$$;

-- The queries that a reranker may be checked by: those of which it is known what is relevant, and the latest logged.
CREATE OR REPLACE FUNCTION _queries_to_check(_reranker rerankers) RETURNS TABLE (query text, place int)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT btrim(f.query), 1 FROM feedback f WHERE f.reranker = _reranker.name AND f.relevance >= 0.5
    UNION
    SELECT btrim(q.query), 1 FROM queries q WHERE q.qrels_set IN (SELECT _sets_of(_reranker)) AND EXISTS (
        SELECT FROM qrels j WHERE (j.qrels_set, j.query_id) = (q.qrels_set, q.id) AND j.relevance > 0)
    UNION
    SELECT s.query, 2 FROM (
        SELECT btrim(l.query) AS query FROM searches l WHERE l.reranker = _reranker.name
        ORDER BY l.searched_at DESC LIMIT 200) s
$$;

-- Whether one of a reranker's models is behind an endpoint, which may want money for each answer.
CREATE OR REPLACE FUNCTION _asks_elsewhere(_reranker rerankers) RETURNS boolean
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT EXISTS (
        SELECT FROM models m, _generation(_reranker.name, _reranker.generation) g
        WHERE m.loader = 'http' AND m.name IN (g.embedding_model, g.late_interaction_model,
            _reranker.cross_encoder_model, _reranker.cross_encoder_fallback, _reranker.listwise_model))
$$;

-- Takes a query that has not been searched for since that time, of up to a hundred for each reranker, so that no other
-- worker does. None of a reranker that asks endpoints, nor while documents or requests wait. What takes too long tells
-- nothing, and isn't tried again soon.
CREATE OR REPLACE FUNCTION next_check(since timestamptz DEFAULT now() - interval '1 day')
RETURNS TABLE (reranker text, query text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    r rerankers;
BEGIN
    IF EXISTS (SELECT FROM pending p WHERE p.failed_at IS NULL)
        OR EXISTS (SELECT FROM announcements a WHERE a.waiting > 0 AND a.alive_at > now() - interval '10 seconds')
        OR NOT pg_try_advisory_xact_lock(_lock_class('checking', 0), 0) THEN
        RETURN;
    END IF;
    FOR r IN SELECT * FROM rerankers x WHERE NOT _asks_elsewhere(x) ORDER BY random() LOOP
        DELETE FROM checked_queries c WHERE c.reranker = r.name AND c.checked_at < now() - interval '7 days';
        CONTINUE WHEN 100 <= (
            SELECT count(*) FROM checked_queries c
            WHERE (c.reranker, c.generation, c.settings_hash) = (r.name, r.generation, _settings_hash(r))
              AND c.checked_at >= since);
        SELECT q.query INTO query FROM _queries_to_check(r) q
        WHERE NOT EXISTS (
            SELECT FROM checked_queries c
            WHERE (c.reranker, c.generation, c.query_hash) = (r.name, r.generation, md5(q.query))
              AND c.settings_hash = _settings_hash(r) AND c.checked_at >= since)
        ORDER BY q.place, md5(q.query) LIMIT 1;
        IF FOUND THEN
            reranker := r.name;
            INSERT INTO checked_queries AS c (reranker, generation, query_hash, settings_hash)
            VALUES (r.name, r.generation, md5(next_check.query), _settings_hash(r))
            ON CONFLICT ON CONSTRAINT checked_queries_pkey DO UPDATE
            SET settings_hash = excluded.settings_hash, hnsw_recall = NULL, gains = NULL, stale = NULL,
                checked_at = now();
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION next_check IS 'Takes a query that a reranker is to be checked by next: one row, or none';

-- Searches for it, and keeps what that tells.
CREATE OR REPLACE FUNCTION check_search(reranker text, query text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _reranker(reranker);
    generation generations := _generation(target.name, target.generation);
    traced jsonb;
    found double precision;
    gained jsonb;
    stale_share double precision;
BEGIN
    PERFORM set_config('pgrerank.background', 'on', true);
    traced := trace(reranker => target.name, query => check_search.query);
    IF traced ->> 'reason' IS NULL THEN
        gained := _gains(traced, _relevant_to(target, check_search.query));
    END IF;
    IF 'dense' = ANY (_possible_stages(target, generation, true, false)) THEN
        found := _share_found(
            trace(reranker => target.name, query => check_search.query, stages => '{dense}', recall => 'hnsw'),
            trace(reranker => target.name, query => check_search.query, stages => '{dense}', recall => 'exact'));
    END IF;
    EXECUTE format($sql$
        SELECT avg((s.content_hash IS DISTINCT FROM _content_hash(d.content))::int)
        FROM %s d JOIN %s s ON s.key = d.key WHERE %s
        $sql$, _documents(generation), _side_table(generation), _among(target, 'd.key', '$1'))
    INTO stale_share USING ARRAY(SELECT jsonb_array_elements_text(traced -> 'keys'));
    UPDATE checked_queries c SET hnsw_recall = found, gains = gained, stale = stale_share
    WHERE (c.reranker, c.generation, c.query_hash) = (target.name, target.generation, md5(check_search.query))
      AND c.settings_hash = _settings_hash(target);
END
$$;
COMMENT ON FUNCTION check_search IS
    'Checks a reranker by a query from next_check: recall by HNSW, what each stage gains, whether vectors are stale';

-- The share of the second trace's documents that the first one has; NULL where either is degraded.
CREATE OR REPLACE FUNCTION _share_found(_trace jsonb, _whole jsonb) RETURNS double precision
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT avg((_trace -> 'keys' ? k.key)::int)
    FROM jsonb_array_elements_text(_whole -> 'keys') k (key)
    WHERE _trace ->> 'reason' IS NULL AND _whole ->> 'reason' IS NULL
$$;

-- By key, how relevant documents are to a query, by judgements or clicks.
CREATE OR REPLACE FUNCTION _relevant_to(_reranker rerankers, _query text) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT jsonb_object_agg(k.key, k.relevance) FROM (
        SELECT g.key, max(g.relevance) AS relevance FROM (
            SELECT f.key, avg(f.relevance) AS relevance FROM feedback f
            WHERE f.reranker = _reranker.name AND btrim(f.query) = btrim(_query) GROUP BY f.key
            UNION ALL
            SELECT j.key, j.relevance FROM qrels j JOIN queries q ON (q.qrels_set, q.id) = (j.qrels_set, j.query_id)
            WHERE btrim(q.query) = btrim(_query) AND q.qrels_set IN (SELECT _sets_of(_reranker))) g
        GROUP BY g.key HAVING max(g.relevance) > 0) k
$$;

-- By stage but the first, nDCG@10 (Järvelin and Kekäläinen, TOIS 2002) of the order after it less that before; what a
-- stage did not rank follows in the order before. NULL where nothing relevant is among the candidates.
CREATE OR REPLACE FUNCTION _gains(_trace jsonb, _relevant jsonb) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    WITH documents AS MATERIALIZED (
        SELECT k.place, (_relevant ->> k.key)::float8 AS gain
        FROM jsonb_array_elements_text(_trace -> 'keys') WITH ORDINALITY k (key, place)),
    ranks AS MATERIALIZED (
        SELECT s.place AS number, s.stage, r.place, coalesce(r.rank::int, 2147483647) AS rank
        FROM _stages() s
        JOIN jsonb_each(_trace -> 'ranks') t (stage, ranks) USING (stage)
        CROSS JOIN LATERAL jsonb_array_elements_text(t.ranks) WITH ORDINALITY r (rank, place)),
    ordered AS (
        SELECT s.number, s.stage, r.place, row_number() OVER (
            PARTITION BY s.number ORDER BY array_agg(r.rank ORDER BY r.number DESC), r.place) AS position
        FROM (SELECT DISTINCT r.number, r.stage FROM ranks r) s JOIN ranks r ON r.number <= s.number
        GROUP BY s.number, s.stage, r.place),
    measured AS (
        SELECT o.number, o.stage, coalesce(sum(d.gain / ln(o.position + 1)) FILTER (WHERE o.position <= 10), 0) / (
            SELECT sum(i.gain / ln(i.position + 1)) FROM (
                SELECT g.value::float8 AS gain, row_number() OVER (ORDER BY g.value::float8 DESC) AS position
                FROM jsonb_each_text(_relevant) g) i
            WHERE i.position <= 10) AS ndcg
        FROM ordered o JOIN documents d USING (place) GROUP BY o.number, o.stage),
    gained AS (
        SELECT m.stage, m.ndcg - lag(m.ndcg) OVER (ORDER BY m.number) AS gain FROM measured m
        WHERE EXISTS (SELECT FROM documents d WHERE d.gain > 0))
    SELECT jsonb_object_agg(g.stage, g.gain) FROM gained g WHERE g.gain IS NOT NULL
$$;

CREATE OR REPLACE FUNCTION _checks() RETURNS TABLE (
    reranker text, generation int, measure text, stage text, value double precision, error double precision,
    queries bigint, is_bad boolean, checked_at timestamptz)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    WITH checked AS (
        SELECT c.* FROM rerankers r JOIN checked_queries c ON (c.reranker, c.generation) = (r.name, r.generation)
        WHERE c.settings_hash = _settings_hash(r)),
    measured AS (
        SELECT c.reranker, c.generation, 'hnsw_recall' AS measure, NULL AS stage, c.hnsw_recall AS value, c.checked_at
        FROM checked c
        UNION ALL
        SELECT c.reranker, c.generation, 'stale_documents', NULL, c.stale, c.checked_at FROM checked c
        UNION ALL
        SELECT c.reranker, c.generation, 'stage_gain', g.key, g.value::float8, c.checked_at
        FROM checked c CROSS JOIN LATERAL jsonb_each_text(c.gains) g)
    SELECT m.reranker, m.generation, m.measure, m.stage, avg(m.value), stddev_samp(m.value) / sqrt(count(m.value)),
        count(m.value), CASE m.measure
            WHEN 'hnsw_recall' THEN count(m.value) >= 5 AND avg(m.value) < 0.9
            WHEN 'stale_documents' THEN avg(m.value) > 0.01
            ELSE count(m.value) >= 10 AND avg(m.value) + 2 * stddev_samp(m.value) / sqrt(count(m.value)) < 0 END,
        max(m.checked_at)
    FROM measured m WHERE m.value IS NOT NULL
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 3, (SELECT s.place FROM _stages() s WHERE s.stage = m.stage)
$$;

CREATE OR REPLACE VIEW checks AS SELECT * FROM _checks();
COMMENT ON VIEW checks IS
    'What continuous checks have found of each reranker as it is now: the mean over queries, its standard error, and '
    'whether it is bad: hnsw_recall below 0.9, a stage_gain below 0 by two standard errors, a hundredth stale';
GRANT SELECT ON checks TO pg_monitor;
