-- The lexical leg of recall: the documents with the highest BM25 score. It wants no worker, and answers alone while
-- none does. A word's weight in a document is stored (43_words.sql); a score is the inner product of those and the
-- words' IDF.

-- The words of a query, the rarest 32 of them: in how many documents each comes, and its IDF, as Lucene has it.
-- The query is cut as documents are, by all configurations that they have.
CREATE OR REPLACE FUNCTION _query_words(_generation generations, _known word_statistics, _query text)
RETURNS TABLE (lexeme text, documents float8, idf float8)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT w.lexeme, w.documents, ln(1 + (greatest($2 - w.documents, 0) + 0.5) / (w.documents + 0.5))
        FROM (
            SELECT w.lexeme, least(greatest((SELECT t.share FROM %s t WHERE t.lexeme = w.lexeme) * $2, 1), $2)
                AS documents
            FROM (SELECT DISTINCT w.lexeme FROM unnest($1) c (config), _words(c.config, $3) w) w) w
        ORDER BY w.documents, w.lexeme LIMIT 32
        $sql$, _side_table(_generation, 'terms'))
    USING coalesce(_known.configs, ARRAY[_generation.text_search_config]), _known.documents,
        left(_query, _longest_query());
END
$$;

-- A lexeme as a tsquery has it.
CREATE OR REPLACE FUNCTION _quoted_lexeme(_lexeme text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT format('''%s''', replace(replace(_lexeme, '\', '\\'), '''', '''''')) $$;

-- How many documents a search for words may read because of one of them; of two together four times as many.
CREATE OR REPLACE FUNCTION _word_budget(_candidates int, _documents float8) RETURNS float8
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT greatest(1000, 10 * _candidates) * greatest(1, sqrt(_documents / 100000)) $$;

-- The documents to be read for a query: those that match one of a few tsqueries, with the highest scores among them.
-- The first is made of what promises most, rare words, and frequent ones where they weigh much, until the documents
-- expected reach the budget; the others of two words together. That is MaxScore's idea (Turtle and Flood 1995), what
-- can't be among the best isn't read, by estimates (docs/explanation/search.md has how often they are right).
CREATE OR REPLACE FUNCTION _bounded_queries(
    _known word_statistics, _lexemes text[], _documents float8[], _idfs float8[], _budget float8,
    OUT queries tsquery[], OUT are_whole boolean)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    levels int[];
BEGIN
    WITH levels AS (
        SELECT l.level, l.highest, coalesce(_known.shares[l.level + 1], 1) AS share,
            coalesce(_known.shares[l.level + 2], 0) AS above
        FROM _word_levels() l),
    cells AS (
        SELECT w.place, l.level, row_number() OVER best AS number,
            sum(w.documents * (l.share - l.above)) OVER best AS so_far
        FROM unnest(_documents, _idfs) WITH ORDINALITY w (documents, idf, place) CROSS JOIN levels l
        WINDOW best AS (ORDER BY w.idf * l.highest DESC, w.place ROWS UNBOUNDED PRECEDING))
    SELECT array_agg(t.level ORDER BY t.place) INTO levels
    FROM (
        SELECT c.place, min(c.level) FILTER (WHERE c.so_far <= _budget OR c.number = 1) AS level
        FROM cells c GROUP BY c.place) t;
    queries := ARRAY[(
        SELECT string_agg(_quoted_lexeme(u.lexeme || l.mark), ' | ')::tsquery
        FROM unnest(_lexemes, levels) u (lexeme, level) JOIN _word_levels() l ON l.level = u.level)];
    are_whole := NOT EXISTS (SELECT FROM unnest(levels) l (level) WHERE l.level IS DISTINCT FROM 0);
    IF NOT are_whole THEN
        queries := queries || _paired_queries(_known, _lexemes, _documents, _idfs, levels, 4 * _budget);
    END IF;
END
$$;

-- Two words together, of the twelve rarest that are not read whole: all documents with both, or those where both weigh
-- much; as many as are expected to stay within the budget, the weightiest first. Words of a query come together more
-- often than by chance, the rarer the more: over three collections, by about one over the root of the more frequent
-- one's share. Pairs with the same rarer word are one tsquery, for which GIN reads the others' entries only where that
-- word comes.
CREATE OR REPLACE FUNCTION _paired_queries(
    _known word_statistics, _lexemes text[], _documents float8[], _idfs float8[], _levels int[], _budget float8)
RETURNS tsquery[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    pair record;
    rarer text[] := '{}';
    others text[] := '{}';
    marks text[] := '{}';
BEGIN
    FOR pair IN
        WITH words AS (
            SELECT w.place, w.documents, w.idf
            FROM unnest(_documents, _idfs, _levels) WITH ORDINALITY w (documents, idf, level, place)
            WHERE w.level IS DISTINCT FROM 0 ORDER BY w.place LIMIT 12)
        SELECT _lexemes[a.place] AS rarer, _lexemes[b.place] AS other, l.mark,
            a.documents * l.share * sqrt(b.documents * l.share / greatest(_known.documents, 1)) AS documents
        FROM words a JOIN words b ON a.place < b.place
        CROSS JOIN (
            VALUES ('', 0.8, 1.0), (' 1', 1.3, coalesce(_known.shares[2], 1))) l (mark, lowest, share)
        ORDER BY (a.idf + b.idf) * l.lowest DESC
    LOOP
        CONTINUE WHEN pair.documents > _budget;
        _budget := _budget - pair.documents;
        rarer := rarer || pair.rarer;
        others := others || pair.other;
        marks := marks || pair.mark;
    END LOOP;
    RETURN ARRAY(
        SELECT format('%s & (%s)', _quoted_lexeme(p.rarer || p.mark),
            string_agg(_quoted_lexeme(p.other || p.mark), ' | '))::tsquery
        FROM (
            SELECT u.*, bool_or(u.mark = '') OVER (PARTITION BY u.rarer, u.other) AS has_all
            FROM unnest(rarer, others, marks) u (rarer, other, mark)) p
        WHERE p.mark = '' OR NOT p.has_all
        GROUP BY p.rarer, p.mark);
END
$$;

-- Where few documents match a filter all of them are scored. Else the index yields the documents to be scored; through
-- a filter that lets few of them pass, more are read, up to 64 times as many.
CREATE OR REPLACE FUNCTION _recall_lexical(
    _reranker rerankers, _generation generations, _call search_call, _scope search_scope,
    OUT keys text[], OUT scores real[], OUT passages int[], OUT shortage text)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    known word_statistics := _word_statistics(_generation);
    lexemes text[];
    documents float8[];
    idfs float8[];
    budget float8 := _word_budget(_reranker.candidates, known.documents);
    widest float8 := least(64 * budget, _readable_until(_scope.deadline));
    most float8 := least(budget, widest);
    bounded record;
BEGIN
    SELECT array_agg(w.lexeme ORDER BY w.documents, w.lexeme), array_agg(w.documents ORDER BY w.documents, w.lexeme),
        array_agg(w.idf ORDER BY w.documents, w.lexeme)
    INTO lexemes, documents, idfs FROM _query_words(_generation, known, _call.query) w;
    IF lexemes IS NULL THEN
        RETURN;
    ELSIF _scope.matching < most THEN
        SELECT h.keys, h.scores INTO keys, scores
        FROM _highest(_reranker, _generation, _sparse(lexemes, idfs), NULL, _within_partitions(_scope)) h;
        RETURN;
    END IF;
    most := least(widest, most * greatest(1, known.documents / greatest(_scope.matching, 1)));
    LOOP
        bounded := _bounded_queries(known, lexemes, documents, idfs, most);
        SELECT h.keys, h.scores INTO keys, scores
        FROM _highest(_reranker, _generation, _sparse(lexemes, idfs), bounded.queries, _within_partitions(_scope)) h;
        EXIT WHEN bounded.are_whole OR most >= widest OR cardinality(keys) >= _reranker.candidates
            OR clock_timestamp() >= _scope.deadline;
        most := 8 * most;
    END LOOP;
END
$$;

-- The documents with the highest scores, of those that match one of the tsqueries, or of all that pass the filter. The
-- plan is bound to the index, for the planner overestimates what a tsquery of many words matches.
CREATE OR REPLACE FUNCTION _highest(
    _reranker rerankers, _generation generations, _weights sparsevec, _queries tsquery[], _predicate text,
    OUT keys text[], OUT scores real[])
LANGUAGE plpgsql
SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    documents text := _side_table(_generation, 'words') || ' s';
    matching text := coalesce((
        SELECT string_agg(format('s.lexemes @@ %L::tsquery', q.query), ' OR ') FROM unnest(_queries) q (query)),
        'true');
BEGIN
    IF _predicate <> 'true' THEN
        documents := format(
            '%s JOIN %s d ON %s', documents, _reranker.source, _same_key(_reranker, _key_of(_reranker, 'd'), 's.key'));
    END IF;
    EXECUTE format($sql$
        SELECT array_agg(h.key::text ORDER BY h.score DESC), array_agg(h.score ORDER BY h.score DESC)
        FROM (%s) h %s
        WHERE h.score > 0
        $sql$, format($sql$
            SELECT s.key, (0 - (s.weights <#> $1))::real AS score
            FROM %s WHERE (%s) AND %s ORDER BY score DESC, s.key::text LIMIT $2
            $sql$, documents, matching, _predicate), CASE WHEN _predicate = 'true' THEN format(
            'JOIN %s d ON %s', _reranker.source, _same_key(_reranker, _key_of(_reranker, 'd'), 'h.key')) END)
    INTO keys, scores USING _weights, _reranker.candidates;
END
$$;

-- The scores of documents that something else has found: 0 where none of the query's words comes.
CREATE OR REPLACE FUNCTION _score_lexical(
    _reranker rerankers, _generation generations, _call search_call, _keys text[], _deadline timestamptz,
    OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    weights sparsevec := (
        SELECT _sparse(array_agg(w.lexeme), array_agg(w.idf))
        FROM _query_words(_generation, _word_statistics(_generation), _call.query) w);
BEGIN
    EXECUTE format($sql$
        SELECT array_agg(s.key::text), array_agg(coalesce(0 - (s.weights <#> $1), 0)::real)
        FROM %s s WHERE s.key = ANY ($2::%s[])
        $sql$, _side_table(_generation, 'words'), _reranker.key_type)
    INTO keys, scores USING weights, _keys;
END
$$;
