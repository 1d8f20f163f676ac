-- Passages: stretches of a document's text that models read, each with vectors of its own.

-- Where they stand, given a document's bounds: number, first character, and the one after its last, in turn.
CREATE OR REPLACE FUNCTION _passages_of(_bounds int[])
RETURNS TABLE (passage int, starts int, ends int, place int)
LANGUAGE sql IMMUTABLE ROWS 10
SET search_path FROM CURRENT
AS $$
    SELECT p.fields[1], p.fields[2], p.fields[3], p.place::int
    FROM (
        SELECT (b.number - 1) / 3 AS place, array_agg(b.value ORDER BY b.number) AS fields
        FROM unnest(_bounds) WITH ORDINALITY b (value, number)
        GROUP BY 1) p
$$;

-- The numbers of a document's passages. Where it has no bounds, all of its text is number 1.
CREATE OR REPLACE FUNCTION _numbers(_bounds int[]) RETURNS int[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN _bounds IS NULL THEN '{1}' ELSE ARRAY(
        SELECT b.value FROM unnest(_bounds) WITH ORDINALITY b (value, number) WHERE b.number % 3 = 1) END
$$;

-- How many passages of one document MaxSim scores, so that none takes more than its share of a search.
CREATE OR REPLACE FUNCTION _most_passages() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 8 $$;

-- How many characters of a document that has no passages a cross-encoder reads.
CREATE OR REPLACE FUNCTION _most_characters() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 20000 $$;

-- What a model reads of a passage; of HTML the worker leaves out the markup.
CREATE OR REPLACE FUNCTION _as_read(_prefix text, _passage text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT CASE WHEN starts_with(_passage, _prefix) THEN _passage
        ELSE concat(nullif(_prefix, '') || E'\n', _passage) END
$$;

-- Names a passage's own stretch of the text.
CREATE OR REPLACE FUNCTION _cut_hash(_text text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT substring(sha256(convert_to(_text, 'UTF8')) FOR 8) $$;
