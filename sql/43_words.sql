-- What BM25 needs: of each document the weights of its words, of all documents how many have a word. Both are ours, so
-- that lexical recall wants no extension besides pgvector, whose sparse vectors carry the weights.

-- How often words come in how many of a generation's documents; refreshed whenever the documents have doubled, and
-- when a worker has nothing else to do.
CREATE TABLE IF NOT EXISTS word_statistics (
    reranker text NOT NULL,
    generation int NOT NULL,
    documents bigint NOT NULL DEFAULT 0,
    mean_length real,
    shares real[],
    configs text[],
    changes bigint NOT NULL DEFAULT 0,
    refreshed_at timestamptz,
    PRIMARY KEY (reranker, generation),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
GRANT SELECT ON word_statistics TO PUBLIC;
COMMENT ON TABLE word_statistics IS 'What lexical recall knows of all documents of a generation';
COMMENT ON COLUMN word_statistics.mean_length IS 'Words in a document, on the mean';
COMMENT ON COLUMN word_statistics.shares IS 'Of all words of documents, the share that reaches each level';
COMMENT ON COLUMN word_statistics.configs IS 'The text search configurations by which documents are cut into words';
COMMENT ON COLUMN word_statistics.changes IS 'Documents stored since it was refreshed';

-- NAME_N_words has each document's words, and NAME_N_terms says what share of the documents has a lexeme, if more than
-- two do.
-- Lexemes are indexed and never read, hence kept apart; weights are read of each document that matches, hence kept in
-- the row.
-- How many documents have a word is told to whoever may read the source at all: like every score by IDF, it counts
-- documents that row-level security hides.
CREATE OR REPLACE FUNCTION _create_words_tables(_reranker rerankers, _generation generations) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    words text := _side_table(_generation, 'words');
    terms text := _side_table(_generation, 'terms');
BEGIN
    EXECUTE format($sql$
        CREATE TABLE %s (
            key %s,
            lexemes tsvector,
            weights sparsevec,
            length int NOT NULL,
            mean_length real NOT NULL,
            config text NOT NULL, %s
        $sql$, words, _reranker.key_type, _stored_by(_generation, 'key', 'words'));
    EXECUTE format('ALTER TABLE %s ALTER COLUMN weights SET STORAGE MAIN', words);
    EXECUTE format('CREATE INDEX ON %s USING gin (lexemes) WITH (gin_pending_list_limit = 256)', words);
    PERFORM _protect(words, _reranker, _generation,
        format('Words of reranker %s, generation %s, weighted by BM25', _reranker.name, _generation.number));
    EXECUTE format('CREATE TABLE %s (lexeme text COLLATE "C" PRIMARY KEY, share real NOT NULL)', terms);
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', terms);
    EXECUTE format($sql$
        CREATE POLICY visible_with_source ON %s FOR SELECT
        USING ((SELECT has_any_column_privilege(s.oid, 'SELECT') FROM %s s))
        $sql$, terms, _source_sql(_reranker));
    EXECUTE format('GRANT SELECT ON %s TO PUBLIC', terms);
    PERFORM _grant_side_table(terms, w.role) FROM _worker_roles() w (role);
    EXECUTE format('COMMENT ON TABLE %s IS %L', terms, format('The share of documents of reranker %s, generation '
        '%s, that have a word', _reranker.name, _generation.number));
    EXECUTE format('ALTER TABLE %s OWNER TO %s', terms, _owner());
    INSERT INTO word_statistics (reranker, generation) VALUES (_generation.reranker, _generation.number);
END
$$;

-- The weights of a document's words (Robertson and Zaragoza 2009, with k1 1.2 and b 0.75): each from 0 to 2.2. All at
-- once, as calling a function for each word takes longer than the rest of storing a document.
CREATE OR REPLACE FUNCTION _word_weights(_occurrences int[], _length float8, _mean_length float8) RETURNS float8[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(o.n * 2.2 / (o.n + 1.2 * (0.25 + 0.75 * _length / _mean_length)) ORDER BY o.place)
    FROM unnest(_occurrences) WITH ORDINALITY o (n, place)
$$;

-- Weights from which on a word of a document is indexed once more, with a mark: a search that can't read all documents
-- of a frequent word reads those where it weighs most. No lexeme ends in a blank and a digit.
CREATE OR REPLACE FUNCTION _word_levels() RETURNS TABLE (level int, mark text, lowest float8, highest float8)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ VALUES (0, '', 0.0::float8, 1.3::float8), (1, ' 1', 1.3, 1.5), (2, ' 2', 1.5, 1.7), (3, ' 3', 1.7, 2.2) $$;

-- The level of an indexed lexeme, by its mark.
CREATE OR REPLACE FUNCTION _word_level(_lexeme text) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT CASE WHEN right(_lexeme, 2) IN (' 1', ' 2', ' 3') THEN right(_lexeme, 1)::int ELSE 0 END $$;

-- Weights of lexemes as a sparse vector. A lexeme's place are 28 bits of its hash: two of a vocabulary of a million
-- words share one in one case of 270.
CREATE OR REPLACE FUNCTION _sparse(_lexemes text[], _weights float8[]) RETURNS sparsevec
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT format('{%s}/268435456', string_agg(concat(w.place, ':', w.weight::real), ','))::sparsevec
    FROM (
        SELECT ('x' || left(md5(u.lexeme), 7))::bit(28)::int + 1 AS place, max(u.weight) AS weight
        FROM unnest(_lexemes, _weights) u (lexeme, weight) GROUP BY 1) w
$$;

-- Scripts that are written without blanks between words, as a class of characters: Thai, Lao, Burmese, Khmer, kana,
-- Han and Hangul. They are cut into pairs of characters, since Postgres's parser doesn't cut them.
CREATE OR REPLACE FUNCTION _unspaced_script() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$
    SELECT '[\u0E01-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3040-\u30FF\u3400-\u9FFF'
        '\uAC00-\uD7AF\uF900-\uFAFF]'
$$;

-- The words of a text and how often they come: stemmed, without stop words. Of a very long text the first 200,000
-- characters count; what is longer than any word isn't one.
CREATE OR REPLACE FUNCTION _words(_config text, _content text) RETURNS TABLE (lexeme text, occurrences int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    content text := left(_content, 200000);
BEGIN
    IF content ~ _unspaced_script() THEN
        RETURN QUERY
            SELECT p.pair, count(*)::int
            FROM (
                SELECT c.letter || lead(c.letter) OVER (PARTITION BY r.place ORDER BY c.place) AS pair
                FROM regexp_matches(content, _unspaced_script() || '+', 'g') WITH ORDINALITY r (run, place),
                    string_to_table(r.run[1], NULL) WITH ORDINALITY c (letter, place)) p
            WHERE p.pair IS NOT NULL GROUP BY p.pair;
        content := regexp_replace(content, _unspaced_script() || '+', ' ', 'g');
    END IF;
    RETURN QUERY
        SELECT v.lexeme, cardinality(v.positions) FROM unnest(to_tsvector(_config::regconfig, content)) v
        WHERE octet_length(v.lexeme) <= 200;
END
$$;

-- A document's words as they are stored: lexemes with their marks, weights by place, and how many words there are. Of
-- very many the most frequent 16,000 are, which is what a sparse vector takes, or fewer that are long: a tsvector takes
-- 1 MB, and has each up to four times.
CREATE OR REPLACE FUNCTION _weighed_words(
    _config text, _content text, _mean_length real, OUT lexemes tsvector, OUT weights sparsevec, OUT length int)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    words text[];
    occurrences int[];
    weighed float8[];
BEGIN
    SELECT array_agg(w.lexeme), array_agg(w.occurrences), coalesce(max(w.all_occurrences), 0)
    INTO words, occurrences, length
    FROM (
        SELECT w.*, sum(w.occurrences) OVER () AS all_occurrences,
            sum(octet_length(w.lexeme) + 4) OVER (ORDER BY w.occurrences DESC, w.lexeme) AS bytes
        FROM _words(_config, _content) w ORDER BY w.occurrences DESC, w.lexeme LIMIT 16000) w
    WHERE w.bytes < 250000;
    IF words IS NULL THEN
        RETURN;
    END IF;
    weighed := _word_weights(occurrences, length, _mean_length);
    weights := _sparse(words, weighed);
    lexemes := array_to_tsvector(ARRAY(
        SELECT w.lexeme || l.mark FROM unnest(words, weighed) w (lexeme, weight)
        JOIN _word_levels() l ON w.weight >= l.lowest));
END
$$;

-- What is known of the words of a generation's documents.
CREATE OR REPLACE FUNCTION _word_statistics(_generation generations) RETURNS word_statistics
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT s FROM word_statistics s WHERE (s.reranker, s.generation) = (_generation.reranker, _generation.number)
$$;

-- Stores the words of those documents that are still there. The first documents are weighed by their own mean length.
CREATE OR REPLACE FUNCTION _store_words(_reranker rerankers, _generation generations, _keys text[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    mean_length real := (_word_statistics(_generation)).mean_length;
BEGIN
    IF mean_length IS NULL THEN
        EXECUTE format($sql$
            SELECT avg((SELECT sum(w.occurrences) FROM _words(d.config, d.content) w))
            FROM %s d WHERE %s
            $sql$, _documents(_generation), _among(_reranker, 'd.key', '$1'))
        INTO mean_length USING _keys;
    END IF;
    PERFORM _write_words(_reranker, _generation, _keys, coalesce(mean_length, 1));
END
$$;

-- Counts documents whose words have been stored. Nobody waits for the row, as who counts words anew has it for a while:
-- the few documents that go uncounted meanwhile change no share.
CREATE OR REPLACE FUNCTION _count_changes(_reranker rerankers, _generation generations, _documents int) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
BEGIN
    UPDATE word_statistics s SET changes = s.changes + _documents
    WHERE s.ctid = ANY (ARRAY(
        SELECT w.ctid FROM word_statistics w
        WHERE (w.reranker, w.generation) = (_generation.reranker, _generation.number) FOR UPDATE SKIP LOCKED));
    PERFORM _refresh_words(_reranker, _generation, 1);
END
$$;

-- Writes the words of documents, which are held against deletion until we commit.
CREATE OR REPLACE FUNCTION _write_words(
    _reranker rerankers, _generation generations, _keys text[], _mean_length real) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
BEGIN
    EXECUTE format($sql$
        WITH alive AS MATERIALIZED (%1$s)
        INSERT INTO %2$s AS s (key, lexemes, weights, length, mean_length, config%3$s)
        SELECT a.key, w.lexemes, w.weights, w.length, $2, a.config%3$s
        FROM alive a CROSS JOIN LATERAL _weighed_words(a.config, a.content, $2) w
        ON CONFLICT (key%3$s) DO UPDATE
        SET (lexemes, weights, length, mean_length, config)
            = (excluded.lexemes, excluded.weights, excluded.length, excluded.mean_length, excluded.config)
        $sql$, _alive_sql(_reranker, _generation), _side_table(_generation, 'words'), _partition(_generation))
    USING _keys, _mean_length;
END
$$;

-- Counts words anew where as many documents have been stored since as the given share of those counted before.
-- Documents that were weighed by a mean length a fifth off are weighed again: a thousand now; the rest is enqueued,
-- and as their text is encoded, only their words will be stored again.
CREATE OR REPLACE FUNCTION _refresh_words(_reranker rerankers, _generation generations, _share float8) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    known word_statistics;
    others text;
    first_keys text[];
BEGIN
    SELECT s.* INTO known FROM word_statistics s
    WHERE (s.reranker, s.generation) = (_generation.reranker, _generation.number)
      AND s.changes > 0 AND s.changes >= _share * s.documents
    FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    known := _counted_words(_generation, known);
    UPDATE word_statistics s
    SET (documents, mean_length, shares, configs, changes, refreshed_at)
        = (known.documents, known.mean_length, known.shares, known.configs, 0, now())
    WHERE (s.reranker, s.generation) = (known.reranker, known.generation);
    others := format(
        'SELECT w.key::text AS key FROM %s w WHERE w.length > 0 AND w.mean_length NOT BETWEEN %s AND %s',
        _side_table(_generation, 'words'), known.mean_length / 1.25, known.mean_length * 1.25);
    EXECUTE format('SELECT array_agg(o.key) FROM (%s LIMIT 1000) o', others) INTO first_keys;
    IF first_keys IS NOT NULL THEN
        PERFORM _write_words(_reranker, _generation, first_keys, known.mean_length);
        EXECUTE _enqueue_sql(_generation.reranker, _generation.number, others);
    END IF;
END
$$;

-- How many documents are counted at most: of more than these, a sample stands for all.
CREATE OR REPLACE FUNCTION _counted_documents() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 100000 $$;

-- Counts which share of documents each word comes in, and returns the new statistics. Shares change less than numbers
-- do as documents come: few rows are written anew.
CREATE OR REPLACE FUNCTION _counted_words(_generation generations, _known word_statistics) RETURNS word_statistics
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
DECLARE
    part float8 := least(1, _counted_documents()::float8 / (_known.documents + _known.changes));
    sample text := _side_table(_generation, 'words') || ' w';
BEGIN
    IF part < 1 THEN
        sample := format('%s TABLESAMPLE SYSTEM (%s)', sample, 100 * part);
    END IF;
    EXECUTE format($sql$
        WITH counted AS MATERIALIZED (SELECT w.lexemes, w.length, w.config FROM %1$s),
        size AS (SELECT count(*)::float8 AS documents FROM counted),
        entries AS MATERIALIZED (
            SELECT u.lexeme, _word_level(u.lexeme) AS level, count(*) / max(s.documents) AS share, count(*) AS found
            FROM size s, counted c, unnest(tsvector_to_array(c.lexemes)) u (lexeme) GROUP BY u.lexeme),
        words AS (SELECT e.lexeme, e.share FROM entries e WHERE e.level = 0 AND e.found > 2),
        gone AS (DELETE FROM %2$s t WHERE NOT EXISTS (SELECT FROM words w WHERE w.lexeme = t.lexeme)),
        stored AS (
            INSERT INTO %2$s AS t (lexeme, share) SELECT w.lexeme, w.share FROM words w
            ON CONFLICT (lexeme) DO UPDATE SET share = excluded.share
            WHERE excluded.share NOT BETWEEN t.share / 1.05 AND t.share * 1.05)
        SELECT max(s.documents) / $1, avg(nullif(c.length, 0)), array_agg(DISTINCT c.config), (
            SELECT array_agg(coalesce(n.share / n.of_all, 0) ORDER BY l.level)
            FROM _word_levels() l LEFT JOIN (
                SELECT e.level, sum(e.share) AS share, max(sum(e.share)) OVER () AS of_all
                FROM entries e GROUP BY e.level) n USING (level))
        FROM counted c, size s
        $sql$, sample, _side_table(_generation, 'terms'))
    INTO _known.documents, _known.mean_length, _known.configs, _known.shares USING part;
    _known.mean_length := coalesce(_known.mean_length, 1);
    RETURN _known;
END
$$;
