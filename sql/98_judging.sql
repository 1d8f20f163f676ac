-- What people thought of documents: feedback on searches, to train by, and judgements by set, to measure by.

-- No foreign key: clicks outlive their reranker, and one made again by that name takes them up.
CREATE TABLE IF NOT EXISTS feedback (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reranker text NOT NULL,
    query text NOT NULL CHECK (query ~ '\S' AND length(query) <= _longest_query()),
    key text NOT NULL,
    relevance real NOT NULL CHECK (relevance BETWEEN 0 AND 1),
    given_by name NOT NULL DEFAULT current_user,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS feedback_reranker ON feedback (reranker);
COMMENT ON TABLE feedback IS 'How relevant people found documents for their queries';
COMMENT ON COLUMN feedback.relevance IS 'From 0 (no answer) to 1 (an answer)';

-- As the caller: who can't see a document can't judge it, and learns no more than that.
CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key text, relevance double precision DEFAULT 1)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    target rerankers := _reranker(reranker);
    kept text;
BEGIN
    IF NOT has_table_privilege('pgrerank.feedback', 'INSERT') THEN
        PERFORM _raise('insufficient_privilege', format('role %s may not give feedback', current_user),
            format('Have the owner run: GRANT INSERT ON pgrerank.feedback TO %I;', current_user));
    ELSIF coalesce(query, '') !~ '\S' OR length(query) > _longest_query() THEN
        PERFORM _raise('invalid_parameter_value', format(
            'reranker "%s": the query of a feedback has %s characters, expected a text of up to %s',
            target.name, coalesce(length(query), 0), _longest_query()));
    ELSIF (relevance BETWEEN 0 AND 1) IS NOT TRUE THEN
        PERFORM _raise('invalid_parameter_value', format(
            'reranker "%s": relevance is %s, expected 0 (no answer) to 1 (an answer)',
            target.name, coalesce(relevance::text, 'NULL')));
    END IF;
    EXECUTE format('SELECT _as_kept(%s) FROM %s d WHERE %s', _key_of(target, 'd'), target.source,
        _same_key(target, _key_of(target, 'd'), '$1::' || target.key_type))
    INTO kept USING key;
    IF kept IS NULL THEN
        PERFORM _raise('no_data_found', format(
            'reranker "%s": there is no document %s in %s, or role %s can''t see it',
            target.name, coalesce(quote_literal(key), 'NULL'), target.source, current_user));
    END IF;
    INSERT INTO feedback (reranker, query, key, relevance) VALUES (reranker, query, kept, relevance);
END
$$;
COMMENT ON FUNCTION feedback(text, text, text, double precision) IS
    'Remembers how relevant a document was to a query, from 0 to 1';

CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key bigint, relevance double precision DEFAULT 1)
RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT feedback(reranker, query, key::text, relevance) $$;
COMMENT ON FUNCTION feedback(text, text, bigint, double precision) IS
    'Remembers how relevant a document was to a query, from 0 to 1';

CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key uuid, relevance double precision DEFAULT 1)
RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT feedback(reranker, query, key::text, relevance) $$;
COMMENT ON FUNCTION feedback(text, text, uuid, double precision) IS
    'Remembers how relevant a document was to a query, from 0 to 1';

-- Feedback with the texts, one row for each query and document. For those who see all documents: to others, some would
-- seem gone.
CREATE OR REPLACE FUNCTION judged(reranker text)
RETURNS TABLE (query text, key text, relevance real, given bigint, content text)
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off SET datestyle = 'ISO' SET timezone = 'UTC'
AS $$
DECLARE
    target rerankers := _reranker(reranker);
BEGIN
    RETURN QUERY EXECUTE format($sql$
        SELECT f.query, f.key, f.relevance, f.given, d.content
        FROM (
            SELECT btrim(f.query) AS query, f.key, avg(f.relevance)::real AS relevance, count(*) AS given,
                min(f.id) AS first
            FROM feedback f WHERE f.reranker = $1 GROUP BY 1, 2) f
        LEFT JOIN %s d ON d.key::text = f.key
        ORDER BY f.first
        $sql$, _documents(_generation(target.name, target.generation)))
    USING target.name;
END
$$;
COMMENT ON FUNCTION judged IS
    'Feedback as training data: mean relevance by query and document, with the document''s text';

-- Judgements by set: queries, and how relevant which documents are to them.
CREATE TABLE IF NOT EXISTS queries (
    qrels_set text NOT NULL CHECK (qrels_set ~ '^[^[:cntrl:]]{1,100}$'),
    id text NOT NULL CHECK (id <> ''),
    query text NOT NULL CHECK (query ~ '\S' AND length(query) <= _longest_query()),
    PRIMARY KEY (qrels_set, id)
);
COMMENT ON TABLE queries IS 'The queries of each set of judgements';

-- Keys are texts, so that one set serves all rerankers over a table, and judgements outlive documents.
CREATE TABLE IF NOT EXISTS qrels (
    qrels_set text NOT NULL,
    query_id text NOT NULL,
    key text NOT NULL,
    relevance int NOT NULL,
    passages int4multirange CHECK (NOT isempty(passages) AND lower(passages) >= 0 AND NOT upper_inf(passages)),
    PRIMARY KEY (qrels_set, query_id, key),
    FOREIGN KEY (qrels_set, query_id) REFERENCES queries ON DELETE CASCADE ON UPDATE CASCADE
);
COMMENT ON TABLE qrels IS 'How relevant documents are to the queries of a set';
COMMENT ON COLUMN qrels.key IS 'The document''s key, as text';
COMMENT ON COLUMN qrels.relevance IS '0 or less: not relevant; 1 and more: relevant, the higher the more';
COMMENT ON COLUMN qrels.passages IS
    'Where in the document''s text the answer is, in characters from 0; NULL where that is not judged';
