-- What is stored about rerankers.

CREATE TABLE IF NOT EXISTS rerankers (
    name text PRIMARY KEY,
    source regclass NOT NULL,
    key_column name NOT NULL,
    key_type regtype NOT NULL,
    embedding_column name,
    distance text NOT NULL DEFAULT 'cosine',
    cross_encoder_model text REFERENCES models,
    candidates int NOT NULL DEFAULT 100,
    maxsim_bit_top int,
    maxsim_top int NOT NULL DEFAULT 30,
    timeout interval NOT NULL DEFAULT '5 seconds',
    text_search_config regconfig NOT NULL DEFAULT 'simple',
    generation int NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    grace_period interval NOT NULL DEFAULT '1 day',
    blend jsonb,
    log_sample real NOT NULL DEFAULT 0,
    log_retention interval NOT NULL DEFAULT '30 days'
);
COMMENT ON TABLE rerankers IS 'A reranker: a source table, its stages and their sizes';
COMMENT ON COLUMN rerankers.embedding_column IS 'The user''s own embedding column, where recall does not use the side table''s';
COMMENT ON COLUMN rerankers.candidates IS 'How many documents recall returns';
COMMENT ON COLUMN rerankers.maxsim_bit_top IS 'How many of the best by one bit a dimension MaxSim scores in full; NULL for all candidates, without that stage';
COMMENT ON COLUMN rerankers.maxsim_top IS 'How many of the best so far the cross-encoder scores';
COMMENT ON COLUMN rerankers.generation IS 'The generation that searches read';
COMMENT ON COLUMN rerankers.grace_period IS 'How long a generation is kept current after another took over, for rollback_reranker';
COMMENT ON COLUMN rerankers.blend IS 'Weights by stage: scores are blended; NULL where a later stage overrules the earlier ones';
COMMENT ON COLUMN rerankers.log_sample IS 'Share of searches that pgrerank.searches remembers, from 0 (none) to 1';
COMMENT ON COLUMN rerankers.log_retention IS 'How long it remembers them';

CREATE TABLE IF NOT EXISTS generations (
    reranker text NOT NULL REFERENCES rerankers ON DELETE CASCADE,
    number int NOT NULL,
    text_expression text NOT NULL,
    embedding_model text REFERENCES models,
    late_interaction_model text REFERENCES models,
    token_precision text NOT NULL DEFAULT 'int8',
    token_dims int,
    token_pool int NOT NULL DEFAULT 1,
    token_bits boolean NOT NULL DEFAULT false,
    projection text,
    created_at timestamptz NOT NULL DEFAULT now(),
    text_columns text[],
    retired_at timestamptz,
    PRIMARY KEY (reranker, number)
);
COMMENT ON TABLE generations IS 'What a reranker''s stored vectors were made from: one side table each';
COMMENT ON COLUMN generations.text_columns IS 'The columns that text_expression was made of; NULL where it was given itself';
COMMENT ON COLUMN generations.retired_at IS 'When another took over from it; it is dropped after the reranker''s grace_period';
COMMENT ON COLUMN generations.token_dims IS 'Dimensions that token vectors are projected to; NULL for the model''s own';
COMMENT ON COLUMN generations.token_pool IS 'A document''s token vectors are pooled to one for so many';
COMMENT ON COLUMN generations.token_bits IS 'Whether they are stored a second time, in one bit a dimension';
COMMENT ON COLUMN generations.projection IS 'MD5 of the matrix that reduces token vectors, once a worker has fitted it';

-- Apart from generations, which everybody may read: fitted on few documents, a projection tells of them.
CREATE TABLE IF NOT EXISTS projections (
    reranker text NOT NULL,
    generation int NOT NULL,
    matrix bytea NOT NULL,
    documents int NOT NULL,
    PRIMARY KEY (reranker, generation),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
COMMENT ON TABLE projections IS 'What reduces a generation''s token vectors to token_dims dimensions';
COMMENT ON COLUMN projections.matrix IS 'Orthonormal rows, packed as float16';
COMMENT ON COLUMN projections.documents IS 'How many documents it was fitted on';

CREATE SEQUENCE IF NOT EXISTS ticket;

CREATE TABLE IF NOT EXISTS pending (
    reranker text NOT NULL,
    generation int NOT NULL,
    key text NOT NULL,
    ticket bigint NOT NULL DEFAULT nextval('ticket'),
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    attempts int NOT NULL DEFAULT 0,
    claimed_by int,
    claimed_until timestamptz,
    failed_at timestamptz,
    last_error text,
    PRIMARY KEY (reranker, generation, key),
    FOREIGN KEY (reranker, generation) REFERENCES generations ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS pending_ticket ON pending (ticket) WHERE failed_at IS NULL;
COMMENT ON TABLE pending IS 'Documents that wait to be encoded, and those that failed';
COMMENT ON COLUMN pending.ticket IS 'Changes whenever the document does, so that a worker settles only what it saw';
COMMENT ON COLUMN pending.claimed_by IS 'Process id of the claiming worker''s Postgres session';

GRANT SELECT ON rerankers, generations TO PUBLIC;

CREATE OR REPLACE FUNCTION _reranker(name text) RETURNS rerankers
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
#variable_conflict use_column
DECLARE
    present rerankers;
    known text;
BEGIN
    SELECT * INTO present FROM rerankers r WHERE r.name = _reranker.name;
    IF FOUND THEN
        RETURN present;
    END IF;
    SELECT string_agg(r.name, ', ' ORDER BY r.name) INTO known FROM rerankers r;
    PERFORM _fail('undefined_object', format('reranker "%s" does not exist', _reranker.name),
        format('There are: %s.', coalesce(known, 'none yet; see pgrerank.create_reranker')));
END
$$;

CREATE OR REPLACE FUNCTION _is_blend(blend jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN jsonb_typeof(blend) = 'object' THEN (
        SELECT coalesce(bool_and(w.key IN ('recall', 'maxsim', 'cross_encoder') AND coalesce((jsonb_path_query_first(w.value, '$ ? (@.type() == "number")'))::numeric BETWEEN 0 AND 1000, false)), false)
            AND bool_or(w.value > '0') FROM jsonb_each(blend) w) ELSE false END
$$;

-- The rules that a reranker's settings obey, whether stored or given with one call.
CREATE OR REPLACE FUNCTION _check_settings(r rerankers) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    broken record;
BEGIN
    SELECT * INTO broken FROM (VALUES
        ('name', r.name, r.name ~ '^[a-z_][a-z0-9_]{0,39}$', 'a lower-case letter or _, then up to 39 more of these or digits'),
        ('distance', r.distance, r.distance IN ('cosine', 'inner_product', 'l2'), 'cosine, inner_product or l2'),
        ('candidates', r.candidates::text, r.candidates BETWEEN 1 AND 100000, '1 to 100000'),
        ('maxsim_bit_top', r.maxsim_bit_top::text, r.maxsim_bit_top IS NULL OR r.maxsim_bit_top BETWEEN 1 AND 100000, '1 to 100000'),
        ('maxsim_top', r.maxsim_top::text, r.maxsim_top BETWEEN 1 AND 1000, '1 to 1000'),
        ('timeout', r.timeout::text, r.timeout BETWEEN '1 ms' AND '10 min', '1 ms to 10 min'),
        ('grace_period', r.grace_period::text, r.grace_period BETWEEN '0' AND '1 year', '0 to 1 year'),
        ('blend', r.blend::text, r.blend IS NULL OR _is_blend(r.blend), 'weights by stage, such as {"recall": 0.2, "maxsim": 0.3, "cross_encoder": 0.5}: numbers from 0 to 1000, one of them above 0'),
        ('log_sample', r.log_sample::text, r.log_sample BETWEEN 0 AND 1, '0 to 1'),
        ('log_retention', r.log_retention::text, r.log_retention BETWEEN '1 minute' AND '10 years', '1 minute to 10 years')) rules (setting, value, holds, wanted)
    WHERE holds IS NOT TRUE;
    IF FOUND THEN
        PERFORM _fail('invalid_parameter_value', format('reranker "%s": %s is %s, wanted %s', r.name, broken.setting, coalesce(quote_literal(broken.value), 'NULL'), broken.wanted));
    END IF;
END
$$;

-- The generation that alter_reranker starts from: the one in use, or the one that is being made to follow it.
CREATE OR REPLACE FUNCTION _newest(reranker text) RETURNS generations
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT * FROM generations g WHERE g.reranker = $1 AND g.retired_at IS NULL ORDER BY g.number DESC LIMIT 1 $$;

-- The tiers in which a generation keeps token vectors.
CREATE OR REPLACE FUNCTION _tiers(reranker text, generation int) RETURNS text[]
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT ARRAY['tokens'] || CASE WHEN g.token_bits THEN ARRAY['bits'] ELSE '{}' END FROM generations g WHERE (g.reranker, g.number) = ($1, $2) $$;

-- The table with the parts of one tier.
CREATE OR REPLACE FUNCTION _parts(reranker text, generation int, tier text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank.%I', reranker || '_' || generation || '_' || tier) $$;

-- The side table of a generation, quoted and with its schema.
CREATE OR REPLACE FUNCTION _side(reranker text, generation int) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT format('pgrerank.%I', reranker || '_' || generation) $$;
