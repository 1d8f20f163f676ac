-- What is stored about rerankers, and the settings that they have.

CREATE TABLE IF NOT EXISTS rerankers (
    name text PRIMARY KEY,
    source regclass NOT NULL,
    key_columns text[] NOT NULL,
    key_type text NOT NULL,
    generation int NOT NULL,
    source_names jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rerankers IS 'A reranker: a source table, its stages and their sizes';
COMMENT ON COLUMN rerankers.key_type IS
    'The type of the source''s key, without a length; a domain''s own; pgrerank.NAME_key where it has several columns';
COMMENT ON COLUMN rerankers.source_names IS
    'Names of the source and, by their numbers, names and types of its columns when it was looked at last';
COMMENT ON COLUMN rerankers.generation IS 'The generation that searches read';

CREATE TABLE IF NOT EXISTS generations (
    reranker text NOT NULL REFERENCES rerankers ON DELETE CASCADE,
    number int NOT NULL,
    token_bits boolean NOT NULL,
    projection text,
    partition int,
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz,
    PRIMARY KEY (reranker, number)
);
COMMENT ON TABLE generations IS 'What a reranker''s stored vectors were made from: one side table each';
COMMENT ON COLUMN generations.retired_at IS
    'When another took over from it; it is dropped after the reranker''s grace_period';
COMMENT ON COLUMN generations.token_bits IS 'Whether token vectors are stored a second time, in one bit a dimension';
COMMENT ON COLUMN generations.partition IS
    'Always NULL here: the one that a search is confined to, while it runs';
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

CREATE TABLE IF NOT EXISTS partitions (
    reranker text NOT NULL REFERENCES rerankers ON DELETE CASCADE,
    number int NOT NULL,
    leaf regclass NOT NULL,
    tried_at timestamptz,
    PRIMARY KEY (reranker, number),
    UNIQUE (reranker, leaf)
);
COMMENT ON TABLE partitions IS 'The partitions of a reranker''s source, with the numbers that its side tables'' have';
COMMENT ON COLUMN partitions.leaf IS 'A partition that has rows itself, of whatever level';
COMMENT ON COLUMN partitions.tried_at IS
    'When it had gone, all its vectors were deleted, and a search kept its side tables from being dropped';

GRANT SELECT ON rerankers, generations, partitions TO PUBLIC;

-- The settings of a reranker, each declared in one line or two. What follows from it is made below and in later files:
-- the columns of rerankers and generations, the arguments of create_reranker and alter_reranker and of each search, the
-- check of their values.
--   preset       its default, an SQL expression
--   kept_in      the table that has it: what stored vectors depend on is a generation's
--   alterable    whether alter_reranker changes it; cleared_by is the value by which it makes it NULL
--   per_call     whether one search may be given another value
--   holds        what must be true of it (x) to be stored; wanted says so in words
CREATE OR REPLACE FUNCTION _settings() RETURNS TABLE (
    place bigint, setting text, type text, preset text, kept_in text, alterable boolean, cleared_by jsonb,
    per_call boolean, refers_to text, holds text, wanted text, comment text)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT row_number() OVER (), s.* FROM (VALUES
        ('text_columns', 'text[]', NULL, 'generations', true, NULL::jsonb, false, NULL, NULL, NULL,
            'The columns that a document''s text is made of; NULL where text_expression was given'),
        ('text_expression', 'text', NULL, 'generations', true, NULL, false, NULL, NULL, NULL,
            'What a document''s text is, as an expression over the source''s columns'),
        ('embedding_model', 'text', NULL, 'generations', true, '""', false, 'models', NULL, NULL,
            'The model that encodes documents and queries for recall'),
        ('late_interaction_model', 'text', NULL, 'generations', true, '""', false, 'models', NULL, NULL,
            'The model of the token vectors that MaxSim scores'),
        ('cross_encoder_model', 'text', NULL, 'rerankers', true, '""', false, 'models', NULL, NULL,
            'The model that reads query and document together'),
        ('embedding_column', 'text', NULL, 'rerankers', false, NULL, false, NULL, NULL, NULL,
            'The user''s own embedding column, where recall does not use the side table''s'),
        ('distance', 'text', $x$'cosine'$x$, 'rerankers', false, NULL, false, NULL,
            $x$x IN ('cosine', 'inner_product', 'l2')$x$, 'cosine, inner_product or l2',
            'By which recall compares embeddings'),
        ('candidates', 'int', '100', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 1 AND 100000', '1 to 100000',
            'How many documents recall looks for, by each of its legs, and how many the next stage scores'),
        ('maxsim_bit_top', 'int', NULL, 'rerankers', true, '0', true, NULL,
            'x IS NULL OR x BETWEEN 1 AND 100000', '1 to 100000',
            'How many of the best by one bit a dimension MaxSim scores in full; NULL: all, without that stage'),
        ('maxsim_top', 'int', '30', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 1 AND 1000', '1 to 1000',
            'How many of the best so far the cross-encoder scores at most'),
        ('token_precision', 'text', $x$'int8'$x$, 'generations', true, NULL, false, NULL,
            $x$x IN ('float16', 'int8', 'bit')$x$, 'float16, int8 or bit',
            'In which numbers token vectors are stored'),
        ('token_dims', 'int', NULL, 'generations', true, '0', false, NULL, NULL, NULL,
            'Dimensions that token vectors are projected to; NULL for the model''s own'),
        ('token_pool', 'int', '1', 'generations', true, NULL, false, NULL,
            'x BETWEEN 1 AND 16', '1 to 16',
            'A document''s token vectors are pooled to one for so many'),
        ('timeout', 'interval', $x$'5 seconds'$x$, 'rerankers', true, NULL, true, NULL,
            $x$x BETWEEN '1 ms' AND '10 min'$x$, '1 ms to 10 min',
            'How long a search may take before it returns the best order reached'),
        -- Text, as a column of type regconfig would be in the way of pg_upgrade.
        ('text_search_config', 'text', NULL, 'generations', true, NULL, false, NULL, NULL, NULL,
            'By which texts are cut into words; by default the database''s default_text_search_config'),
        ('language_expression', 'text', NULL, 'generations', true, '""', false, NULL, NULL, NULL,
            'A document''s own language, as an expression over the source''s columns that yields a text search '
                'configuration or a code such as de; NULL where all have text_search_config'),
        ('tenant_column', 'text', NULL, 'generations', true, '""', false, NULL, NULL, NULL,
            'The column that keeps tenants apart, where searches are filtered by it; NULL where there are none'),
        ('grace_period', 'interval', $x$'1 day'$x$, 'rerankers', true, NULL, false, NULL,
            $x$x BETWEEN '0' AND '1 year'$x$, '0 to 1 year',
            'How long a generation is kept current after another took over, for rollback_reranker'),
        -- The preset is best without judgements over nine collections (docs/explanation/stages.md).
        ('blend', 'jsonb', $x$'{"dense": 0.28, "lexical": 0.14, "maxsim": 0.28, "cross_encoder": 0.3}'$x$,
            'rerankers', true, NULL, true, NULL, '_is_blend(x)',
            '{} (later stages overrule earlier ones) or weights by stage, such as '
                '{"dense": 0.2, "maxsim": 0.3, "cross_encoder": 0.5}: numbers from 0 to 1000, one of them above 0',
            'Weights by stage, by which scores are blended; {} where later stages overrule earlier ones'),
        ('log_sample', 'double precision', '0', 'rerankers', true, NULL, false, NULL,
            'x BETWEEN 0 AND 1', '0 to 1',
            'Share of searches that pgrerank.searches remembers, from 0 (none) to 1'),
        ('log_retention', 'interval', $x$'30 days'$x$, 'rerankers', true, NULL, false, NULL,
            $x$x BETWEEN '1 minute' AND '10 years'$x$, '1 minute to 10 years',
            'How long it remembers them'),
        ('early_exit', 'double precision', '0.5', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 0 AND 1000', '0 to 1000',
            'The cross-encoder stops reading once fewer unread documents than this are expected to enter the first '
                'top_k; 0: it reads all of maxsim_top'),
        ('cross_encoder_fallback', 'text', NULL, 'rerankers', true, '""', false, 'models', NULL, NULL,
            'The cross-encoder that reads where cross_encoder_model fails, or would be late'),
        ('instruction', 'text', NULL, 'rerankers', true, '""', true, NULL,
            'x IS NULL OR length(x) BETWEEN 1 AND 2000', 'a text of up to 2000 characters',
            'What makes a document relevant, in words, for models that take an instruction'),
        ('listwise_model', 'text', NULL, 'rerankers', true, '""', false, 'models', NULL, NULL,
            'The language model that orders the best documents, reading them together'),
        ('listwise_top', 'int', '20', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 2 AND 100', '2 to 100',
            'How many of the best so far it orders'),
        ('signals', 'jsonb', $x$'{}'$x$, 'rerankers', true, NULL, true, NULL,
            $x$jsonb_typeof(x) = 'object'$x$,
            'an object by column, such as {"published": {"decay": "90 days", "weight": 0.2}}',
            'What columns of the source add to a document''s score; {}: nothing'),
        ('group_by', 'text', NULL, 'rerankers', true, '""', true, NULL, NULL, NULL,
            'The column, or path into JSON, whose value is a document''s group; NULL: there are no groups'),
        ('per_group', 'int', '1', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 1 AND 1000', '1 to 1000',
            'How many documents of each group a search returns at most'),
        ('diversity', 'double precision', '0', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 0 AND 1', '0 to 1',
            'How much a document''s likeness to better ones counts against its relevance; 0: nothing'),
        ('duplicate_threshold', 'double precision', '1', 'rerankers', true, NULL, true, NULL,
            'x > 0 AND x <= 1', 'more than 0, up to 1',
            'Cosine similarity to a better document above which one is left out; 1: none is'),
        ('key_columns', 'text[]', NULL, 'rerankers', false, NULL, false, NULL, NULL, NULL,
            'The columns that tell documents apart; by default the primary key''s'),
        ('min_relevance', 'double precision', NULL, 'rerankers', true, '0', true, NULL,
            'x IS NULL OR x BETWEEN 0 AND 1', '0 to 1',
            'Documents with less relevance are left out of an answer; NULL: none is'),
        ('passage_size', 'int', NULL, 'generations', true, '0', false, NULL,
            'x IS NULL OR x BETWEEN 16 AND 8192', '16 to 8192',
            'How many tokens a passage of a document has at most; NULL: as many as its models read at once'),
        ('passage_overlap', 'int', '0', 'generations', true, NULL, false, NULL,
            'x BETWEEN 0 AND 4096', '0 to 4096',
            'How many tokens of a passage the next one begins with, at most'),
        ('passage_structure', 'text', $x$'plain'$x$, 'generations', true, NULL, false, NULL,
            $x$x IN ('plain', 'markdown', 'html')$x$, 'plain, markdown or html',
            'As what texts are cut into passages: the others at headings, with code and tables kept whole'),
        ('passage_prefix', 'text', NULL, 'generations', true, '""', false, NULL, NULL, NULL,
            'What models read in front of each passage, a title say, as an expression over the source''s columns'),
        ('cross_encoder_passages', 'int', '1', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 1 AND 100', '1 to 100',
            'How many of the best passages of a document the cross-encoder reads'),
        ('passages', 'int', '1', 'rerankers', true, NULL, true, NULL,
            'x BETWEEN 0 AND 100', '0 to 100',
            'How many of the best passages of a document a search returns with it'),
        ('highlights', 'boolean', 'false', 'rerankers', true, NULL, true, NULL, NULL, NULL,
            'Whether a search says which words of a passage answered the query''s, by its token vectors'),
        ('partitioned', 'boolean', NULL, 'generations', true, NULL, false, NULL, NULL, NULL,
            'Whether what is stored is partitioned like the source; by default where that has up to 100 partitions, '
                'unless there is a tenant_column')
    ) s (setting, type, preset, kept_in, alterable, cleared_by, per_call, refers_to, holds, wanted, comment)
$$;

-- Each setting's column. The preset is for rows of an older version; create_reranker has it from above. What is there
-- already is left alone: ALTER TABLE would wait for every running search.
DO $do$
DECLARE
    s record;
BEGIN
    FOR s IN
        SELECT * FROM _settings() d
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = format('pgrerank.%I', d.kept_in)::regclass AND a.attname = d.setting)
        ORDER BY d.place
    LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN %I %s %s', s.kept_in, s.setting, s.type,
            concat_ws(' ', 'DEFAULT ' || s.preset, 'REFERENCES ' || s.refers_to));
        EXECUTE format('ALTER TABLE %I ALTER COLUMN %I DROP DEFAULT', s.kept_in, s.setting);
    END LOOP;
    FOR s IN SELECT * FROM _settings() LOOP
        EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', s.kept_in, s.setting, s.comment);
    END LOOP;
END
$do$;

-- _check_settings(reranker, generation): raises an error for the first setting that breaks its rule. It is written
-- out of the table above, so that a search which checks its own settings evaluates plain expressions.
DO $do$
BEGIN
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION _check_settings(_reranker rerankers, _generation generations) RETURNS void
        LANGUAGE plpgsql STABLE
        SET search_path FROM CURRENT
        AS $body$
        DECLARE
            broken record;
        BEGIN
            SELECT * INTO broken FROM (
                VALUES %s
            ) rules (setting, value, holds, wanted)
            WHERE rules.holds IS NOT TRUE;
            IF FOUND THEN
                PERFORM _raise('invalid_parameter_value', format('reranker "%%s": %%s is %%s, expected %%s',
                    _reranker.name, broken.setting, coalesce(quote_literal(broken.value), 'NULL'), broken.wanted));
            END IF;
        END
        $body$ $sql$, (
        SELECT string_agg(format('(%L, %2$s.%1$I::text, (SELECT %3$s FROM (SELECT %2$s.%1$I) v (x)), %4$L)',
            s.setting, CASE s.kept_in WHEN 'rerankers' THEN '_reranker' ELSE '_generation' END, s.holds, s.wanted),
            E',\n                ' ORDER BY s.place)
        FROM (
            SELECT 0 AS place, 'name' AS setting, 'rerankers' AS kept_in, 'x ~ ''^[a-z_][a-z0-9_]{0,39}$''' AS holds,
                'a lower-case letter or _, then up to 39 more of these or digits' AS wanted
            UNION ALL
            SELECT s.place, s.setting, s.kept_in, s.holds, s.wanted FROM _settings() s WHERE s.holds IS NOT NULL) s));
END
$do$;

-- Returns the reranker of that name, or raises an error that says which there are.
CREATE OR REPLACE FUNCTION _reranker(_name text) RETURNS rerankers
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    stored rerankers;
BEGIN
    SELECT * INTO stored FROM rerankers r WHERE r.name = _name;
    IF NOT FOUND THEN
        PERFORM _raise('undefined_object', format('reranker "%s" does not exist', _name), format('There are: %s.', (
            SELECT coalesce(string_agg(r.name, ', ' ORDER BY r.name), 'none yet; see pgrerank.create_reranker')
            FROM rerankers r)));
    END IF;
    RETURN stored;
END
$$;

-- Returns a generation of a reranker; all NULL where there is none of that number.
CREATE OR REPLACE FUNCTION _generation(_reranker text, _number int) RETURNS generations
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT g FROM generations g WHERE (g.reranker, g.number) = (_reranker, _number) $$;

-- Returns the generation that alter_reranker starts from: the one in use, or the one being made to follow it.
CREATE OR REPLACE FUNCTION _newest_generation(_reranker text) RETURNS generations
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT g FROM generations g
    WHERE g.reranker = _reranker AND g.retired_at IS NULL ORDER BY g.number DESC LIMIT 1
$$;

-- An instruction wants a model that reads it.
CREATE OR REPLACE FUNCTION _check_instruction(_reranker rerankers, _generation generations) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _reranker.instruction IS NOT NULL AND NOT EXISTS (
        SELECT FROM models m
        WHERE m.takes_instruction AND m.name IN (_generation.embedding_model, _generation.late_interaction_model,
            _reranker.cross_encoder_model, _reranker.cross_encoder_fallback, _reranker.listwise_model)) THEN
        PERFORM _raise('invalid_parameter_value',
            format('reranker "%s": none of its models takes an instruction', _reranker.name),
            'Leave it out, or name a model that does, or give one the option instruction_template.');
    END IF;
END
$$;

-- Names the text that vectors were made from, with what models read in front of its passages; NULL counts as empty.
CREATE OR REPLACE FUNCTION _content_hash(_content text, _prefix text DEFAULT NULL) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT sha256(convert_to(coalesce(_prefix || E'\x1e', '') || coalesce(_content, ''), 'UTF8')) $$;
