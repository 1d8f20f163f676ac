-- Judgements by set: queries, and how relevant which documents are to them. What searches are measured by.

CREATE TABLE IF NOT EXISTS queries (
    qrels_set text NOT NULL CHECK (qrels_set ~ '^[^[:cntrl:]]{1,100}$'),
    id text NOT NULL CHECK (id <> ''),
    query text NOT NULL CHECK (query ~ '\S' AND length(query) <= 10000),
    PRIMARY KEY (qrels_set, id)
);
COMMENT ON TABLE queries IS 'The queries of each set of judgements';

-- Keys are texts, so that one set serves all rerankers over a table, and judgements outlive documents.
CREATE TABLE IF NOT EXISTS qrels (
    qrels_set text NOT NULL,
    query_id text NOT NULL,
    key text NOT NULL,
    relevance int NOT NULL,
    PRIMARY KEY (qrels_set, query_id, key),
    FOREIGN KEY (qrels_set, query_id) REFERENCES queries ON DELETE CASCADE ON UPDATE CASCADE
);
COMMENT ON TABLE qrels IS 'How relevant documents are to the queries of a set';
COMMENT ON COLUMN qrels.key IS 'The document''s key, as text';
COMMENT ON COLUMN qrels.relevance IS '0 or less: not relevant; 1 and more: relevant, the higher the more';
