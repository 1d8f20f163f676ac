-- What people thought of documents that a search gave them: clicks, thumbs, judgements. Training data.

-- No foreign key: clicks outlive their reranker, and one made again by that name takes them up.
CREATE TABLE IF NOT EXISTS feedback (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reranker text NOT NULL,
    query text NOT NULL CHECK (query ~ '\S' AND length(query) <= 10000),
    key text NOT NULL,
    relevance real NOT NULL CHECK (relevance BETWEEN 0 AND 1),
    given_by name NOT NULL DEFAULT current_user,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS feedback_reranker ON feedback (reranker);
COMMENT ON TABLE feedback IS 'How relevant people found documents for their queries';
COMMENT ON COLUMN feedback.relevance IS 'From 0 (no answer) to 1 (an answer)';

-- As the caller: who can't see a document can't judge it, and learns no more than that.
CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key text, relevance double precision DEFAULT 1) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    r rerankers := _reranker(reranker);
    known boolean;
BEGIN
    IF NOT has_table_privilege('pgrerank.feedback', 'INSERT') THEN
        PERFORM _fail('insufficient_privilege', format('role %s may not give feedback', current_user),
            format('Have the owner run: GRANT INSERT ON pgrerank.feedback TO %I;', current_user));
    ELSIF coalesce(query, '') !~ '\S' OR length(query) > 10000 THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": the query of a feedback has %s characters, wanted a text of up to 10000', r.name, coalesce(length(query), 0)));
    ELSIF relevance IS NULL OR relevance NOT BETWEEN 0 AND 1 THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": relevance is %s, wanted 0 (no answer) to 1 (an answer)', r.name, coalesce(relevance::text, 'NULL')));
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s d WHERE d.%I = $1::%s)', r.source, r.key_column, r.key_type) INTO known USING key;
    IF NOT known THEN
        PERFORM _fail('no_data_found', format('reranker "%s": there is no document %s in %s, or role %s can''t see it', r.name, coalesce(quote_literal(key), 'NULL'), r.source, current_user));
    END IF;
    INSERT INTO feedback (reranker, query, key, relevance) VALUES (reranker, query, key, relevance);
END
$$;
COMMENT ON FUNCTION feedback(text, text, text, double precision) IS 'Remembers how relevant a document was to a query, from 0 to 1';

CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key bigint, relevance double precision DEFAULT 1) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT feedback(reranker, query, key::text, relevance) $$;
COMMENT ON FUNCTION feedback(text, text, bigint, double precision) IS 'Remembers how relevant a document was to a query, from 0 to 1';

CREATE OR REPLACE FUNCTION feedback(reranker text, query text, key uuid, relevance double precision DEFAULT 1) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$ SELECT feedback(reranker, query, key::text, relevance) $$;
COMMENT ON FUNCTION feedback(text, text, uuid, double precision) IS 'Remembers how relevant a document was to a query, from 0 to 1';

-- Feedback with the texts, one row for each query and document. For those who see all documents: to others, some would
-- seem gone.
CREATE OR REPLACE FUNCTION judged(reranker text) RETURNS TABLE (query text, key text, relevance real, given bigint, content text)
LANGUAGE plpgsql
SET search_path FROM CURRENT SET row_security = off
AS $$
#variable_conflict use_column
DECLARE
    r rerankers := _reranker(judged.reranker);
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT f.query, f.key, f.relevance, f.given, d.content FROM '
        '(SELECT btrim(query) AS query, key, avg(relevance)::real AS relevance, count(*) AS given, min(id) AS first FROM feedback WHERE reranker = $1 GROUP BY 1, 2) f '
        'LEFT JOIN (SELECT %I::text AS key, (%s) AS content FROM %s) d ON d.key = f.key ORDER BY f.first',
        r.key_column, (SELECT g.text_expression FROM generations g WHERE (g.reranker, g.number) = (r.name, r.generation)), r.source)
    USING r.name;
END
$$;
COMMENT ON FUNCTION judged IS 'Feedback as training data: mean relevance by query and document, with the document''s text';
