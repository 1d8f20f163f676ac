-- The best passages of documents: read by cross-encoders, and returned with their documents.

-- What a stage said of passages, if it tells these apart.
CREATE OR REPLACE FUNCTION _found(_stage text, _keys text[], _passages int[], _scores real[]) RETURNS scored_passages[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN array_remove(_passages, NULL) <> '{}'
        THEN ARRAY[(_stage, _keys, _passages, _scores)::scored_passages] ELSE '{}' END
$$;

-- The best passages of these documents by the last stage that scored any of a document's, then those that only earlier
-- ones scored; the score is that stage's.
CREATE OR REPLACE FUNCTION _best_passages(_found scored_passages[], _keys text[], _most int)
RETURNS TABLE (key text, passage int, stage text, score real, place int)
LANGUAGE sql IMMUTABLE ROWS 30
SET search_path FROM CURRENT
AS $$
    SELECT b.key, b.passage, b.stage, b.score, b.place::int
    FROM (
        SELECT l.*, row_number() OVER (PARTITION BY l.key ORDER BY l.number DESC, l.score DESC, l.passage) AS place
        FROM (
            SELECT DISTINCT ON (p.key, p.passage) p.key, p.passage, s.stage, p.score, s.number
            FROM unnest(_found) WITH ORDINALITY s (stage, keys, passages, scores, number),
                unnest(s.keys, s.passages, s.scores) p (key, passage, score) JOIN unnest(_keys) k (key) USING (key)
            WHERE p.score > '-Infinity' AND p.score < 'Infinity'
            ORDER BY p.key, p.passage, s.number DESC) l) b
    WHERE b.place <= _most
$$;

-- The texts of documents that all are one passage, which take less than half the time of others; nothing where one has
-- several.
CREATE OR REPLACE FUNCTION _whole_texts(
    _reranker rerankers, _generation generations, _keys text[], _is_shown boolean,
    OUT keys text[], OUT contents text[], OUT prefixes text[], OUT current boolean[])
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    EXECUTE format($sql$
        SELECT array_agg(d.key::text), array_agg(CASE WHEN s.bounds IS NULL THEN d.content END), array_agg(d.prefix),
            array_agg(CASE WHEN $2 AND s.bounds IS NULL THEN s.content_hash = _content_hash(d.content, d.prefix) END)
        FROM %s d LEFT JOIN %s s ON s.key = d.key WHERE %s
        HAVING count(s.bounds) = 0
        $sql$, _documents(_generation), _side_table(_generation), _among(_reranker, 'd.key', '$1'))
    INTO keys, contents, prefixes, current USING _keys, _is_shown;
END
$$;

-- The best passages of documents with their texts, as the caller may read them: those that stages have found, and after
-- them others in the order of the text. A document that is not encoded, or has no vectors, is one passage. Where they
-- are to be shown, it is looked whether a passage is current: its text is the one that was encoded.
CREATE OR REPLACE FUNCTION _passage_texts(
    _reranker rerankers, _generation generations, _found scored_passages[], _keys text[], _most int, _is_shown boolean)
RETURNS TABLE (key text, passage int, starts int, ends int, stage text, score real, place int, text text, prefix text,
    is_current boolean)
LANGUAGE plpgsql STABLE ROWS 30
SET search_path FROM CURRENT
AS $$
DECLARE
    whole record;
BEGIN
    SELECT * INTO whole FROM _whole_texts(_reranker, _generation, _keys, _is_shown);
    IF whole.keys IS NOT NULL THEN
        RETURN QUERY
            SELECT t.key, 1, 0, length(t.content), b.stage, b.score, 1, t.content, t.prefix, t.is_current
            FROM unnest(whole.keys, whole.contents, whole.prefixes, whole.current) t (key, content, prefix, is_current)
            LEFT JOIN _best_passages(_found, _keys, 1) b ON (b.key, b.passage) = (t.key, 1);
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format($sql$
        WITH best AS MATERIALIZED (SELECT * FROM _best_passages($1, $2, $3))
        SELECT c.key::text, c.passage, c.starts, c.ends, c.stage, c.score, c.standing::int, t.text,
            c.prefix, CASE WHEN $4 AND c.bounds IS NULL THEN c.content_hash = _content_hash(c.content, c.prefix)
                WHEN $4 THEN _cut_hash(t.text) = (
                    SELECT p.cut_hash FROM %4$s p WHERE (p.key, p.passage) = (c.key, c.passage)) END
        FROM (
            SELECT d.key, p.passage, p.starts, p.ends, s.bounds, s.content_hash, b.stage, b.score, d.content, d.prefix,
                row_number() OVER (PARTITION BY d.key ORDER BY b.place, p.place) AS standing
            FROM %1$s d LEFT JOIN %2$s s ON s.key = d.key
            CROSS JOIN LATERAL (
                SELECT 1 AS passage, 0 AS starts, length(d.content) AS ends, 1 AS place WHERE s.bounds IS NULL
                UNION ALL SELECT * FROM _passages_of(s.bounds) WHERE s.bounds IS NOT NULL) p
            LEFT JOIN best b ON b.key = d.key::text AND b.passage = p.passage
            WHERE %3$s) c
        CROSS JOIN LATERAL (SELECT CASE WHEN c.bounds IS NULL THEN c.content
            ELSE substring(c.content FROM c.starts + 1 FOR c.ends - c.starts) END AS text) t
        WHERE c.standing <= $3
        $sql$, _documents(_generation), _side_table(_generation), _among(_reranker, 'd.key', '$2'),
        _side_table(_generation, 'passages'))
    USING _found, _keys, _most, _is_shown;
END
$$;

-- Places are of texts as they were encoded. A document that is not encoded yet has none.
CREATE OR REPLACE FUNCTION passages(reranker text, keys text[] DEFAULT NULL, generation int DEFAULT NULL)
RETURNS TABLE (key text, passage_start int, passage_end int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _reranker(reranker);
    stored generations := _known_generation(target.name, coalesce(generation, target.generation));
BEGIN
    PERFORM _check_source(target);
    RETURN QUERY EXECUTE format($sql$
        SELECT d.key::text, p.starts, p.ends
        FROM %1$s d JOIN %2$s s ON s.key = d.key
        CROSS JOIN LATERAL (
            SELECT 0 AS starts, length(d.content) AS ends WHERE s.bounds IS NULL
            UNION ALL SELECT p.starts, p.ends FROM _passages_of(s.bounds) p) p
        WHERE %3$s AND p.ends > 0
        ORDER BY d.key, p.starts
        $sql$, _documents(stored), _side_table(stored),
        CASE WHEN keys IS NULL THEN 'true' ELSE _among(target, 'd.key', '$1') END)
    USING keys;
END
$$;
COMMENT ON FUNCTION passages IS
    'Where the passages of these documents, or of all, are in their texts, as far as the caller may read them';

-- What models read of documents, in these' order: the best passages of each. No more than _most_characters are read of
-- what is no passage.
CREATE OR REPLACE FUNCTION _readings(
    _reranker rerankers, _generation generations, _found scored_passages[], _keys text[], _most int,
    OUT keys text[], OUT contents text[], OUT passages int[])
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(t.key ORDER BY k.place, t.place), array_agg(
        _as_read(t.prefix, left(t.text, _most_characters())) ORDER BY k.place, t.place),
        array_agg(t.passage ORDER BY k.place, t.place)
    FROM _passage_texts(_reranker, _generation, _found, _keys, _most, false) t
    JOIN unnest(_keys) WITH ORDINALITY k (key, place) USING (key)
    WHERE t.text ~ '\S'
$$;

-- The outcome with the passages to be shown of the documents that are returned. One whose text has changed since it was
-- encoded is not shown: where its passages are isn't known before it is encoded again.
CREATE OR REPLACE FUNCTION _with_passages(_reranker rerankers, _outcome search_outcome, _deadline timestamptz)
RETURNS search_outcome
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    started timestamptz := clock_timestamp();
    generation generations := _confined(_generation(_reranker.name, _reranker.generation), _outcome.partitions);
BEGIN
    IF _reranker.passages = 0 OR _outcome.pool IS NULL THEN
        RETURN _outcome;
    END IF;
    _outcome.shown := (
        SELECT jsonb_object_agg(d.key, d.first || jsonb_build_object('passages', d.passages))
        FROM (
            SELECT s.key, (array_agg(s.shown || s.hidden ORDER BY s.place))[1] AS first,
                CASE WHEN _reranker.passages > 1 THEN jsonb_agg(s.shown ORDER BY s.place) END AS passages
            FROM (
                SELECT t.key, t.place, jsonb_build_object('text', t.text, 'start', t.starts, 'end', t.ends,
                    'stage', t.stage, 'score', t.score) AS shown,
                    jsonb_build_object('passage', t.passage) AS hidden
                FROM _passage_texts(_reranker, generation, _outcome.found, ARRAY(
                    SELECT _outcome.candidates[p.place] FROM unnest(_outcome.pool[:_outcome.returned]) p (place)),
                    _reranker.passages, true) t
                WHERE t.text IS NOT NULL AND t.is_current) s
            GROUP BY s.key) d);
    IF _reranker.highlights AND (_outcome.call).query_tokens IS NOT NULL THEN
        _outcome.shown := _highlighted(_reranker, generation, _outcome, _deadline);
    END IF;
    _outcome.times := _outcome.times || jsonb_build_object('passages', _milliseconds(started));
    RETURN _outcome;
END
$$;

-- The passages to be shown, with the words of each that answer the query's: where its token vectors are those that
-- MaxSim has chosen. The vectors are the stored ones, and no model runs: the worker has the tokenizer that tells which
-- stretch of a text each of them stands for. It can't where token vectors are pooled, or left out by the model.
CREATE OR REPLACE FUNCTION _highlighted(
    _reranker rerankers, _generation generations, _outcome search_outcome, _deadline timestamptz) RETURNS jsonb
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    keys text[];
    request jsonb;
    answer jsonb;
BEGIN
    EXECUTE format($sql$
        SELECT array_agg(s.key ORDER BY s.key), jsonb_agg(jsonb_build_object(
            'text', s.value ->> 'text', 'tokens', t.tokens) ORDER BY s.key)
        FROM jsonb_each($1) s, LATERAL (
            SELECT string_agg(encode(t.tokens, 'hex'), '' ORDER BY t.part) AS tokens FROM %s t
            WHERE (t.key, t.passage) = (s.key::%s, (s.value ->> 'passage')::int)) t
        WHERE t.tokens IS NOT NULL
        $sql$, _side_table(_generation, 'tokens'), _reranker.key_type)
    INTO keys, request USING _outcome.shown;
    IF keys IS NULL THEN
        RETURN _outcome.shown;
    END IF;
    answer := _ask_worker(jsonb_build_object('call', 'highlight', 'model', _generation.late_interaction_model,
        'query', encode((_outcome.call).query_tokens, 'hex'), 'structure', _generation.passage_structure,
        'passages', request)::text, _deadline) -> 'highlights';
    IF jsonb_typeof(answer) IS DISTINCT FROM 'array' OR jsonb_array_length(answer) <> cardinality(keys) THEN
        PERFORM _raise('PGR03', 'the worker answered something else than highlights for each passage');
    END IF;
    RETURN (
        SELECT _outcome.shown || jsonb_object_agg(k.key, _outcome.shown -> k.key
            || jsonb_build_object('highlights', _moved(a.spans, (_outcome.shown -> k.key ->> 'start')::int)))
        FROM unnest(keys) WITH ORDINALITY k (key, place)
        JOIN jsonb_array_elements(answer) WITH ORDINALITY a (spans, place) USING (place));
EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
    IF (_outcome.call)."strict" THEN
        RAISE;
    END IF;
    RAISE WARNING 'pgrerank: nothing is highlighted: %', SQLERRM;
    RETURN _outcome.shown;
END
$$;

-- Spans within a passage as characters of its document; NULL where none can be told.
CREATE OR REPLACE FUNCTION _moved(_spans jsonb, _start int) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE jsonb_typeof(_spans) WHEN 'array' THEN (
        SELECT coalesce(jsonb_agg(jsonb_build_object('start', (s.span ->> 'start')::int + _start,
            'end', (s.span ->> 'end')::int + _start, 'score', s.span -> 'score')
            ORDER BY (s.span ->> 'start')::int), '[]')
        FROM jsonb_array_elements(_spans) s (span)) END
$$;
