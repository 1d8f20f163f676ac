-- The schema itself: who may look at it, which version it is, how it reports errors and builds functions.

COMMENT ON SCHEMA pgrerank IS 'Reranking inside Postgres: recall, MaxSim, cross-encoder in one call';
GRANT USAGE ON SCHEMA pgrerank TO PUBLIC;

CREATE OR REPLACE FUNCTION schema_version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT '0.1.0' $$;
COMMENT ON FUNCTION schema_version() IS 'Version of the installed schema';

-- Raises an error. Conditions of our own end a stage but not a search, unless it is strict:
--   PGR01 no worker can be reached
--   PGR02 the deadline passed
--   PGR03 the worker refused, or answered nonsense
CREATE OR REPLACE FUNCTION _raise(_code text, _message text, _hint text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _hint IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = _code, MESSAGE = _message;
    END IF;
    RAISE EXCEPTION USING ERRCODE = _code, MESSAGE = _message, HINT = _hint;
END
$$;

-- Ends an upgrade of another version than this one; what an upgrade begins with.
CREATE OR REPLACE FUNCTION _expect_version(_version text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF schema_version() <> _version THEN
        PERFORM _raise('object_not_in_prerequisite_state', format(
            'the schema pgrerank is of version %s: this script upgrades %s', schema_version(), _version));
    END IF;
END
$$;

-- Whom pgrerank's functions belong to; side tables and the mapping to the worker are theirs.
CREATE OR REPLACE FUNCTION _owner() RETURNS regrole
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT p.proowner::regrole FROM pg_proc p WHERE p.oid = 'pgrerank._owner()'::regprocedure $$;

-- The longest query that is kept, or searched for by its words, in characters: some two thousand words.
CREATE OR REPLACE FUNCTION _longest_query() RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT 10000 $$;

-- Drops the functions of that name, but for one that is kept.
CREATE OR REPLACE FUNCTION _drop_functions(_name text, _kept oid DEFAULT 0) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = _name AND p.oid <> _kept
    LOOP
        EXECUTE format('DROP FUNCTION %s', routine);
    END LOOP;
END
$$;

-- Defines a public function whose signature is made of what is declared elsewhere (settings, stages). It replaces the
-- one of that name, also where arguments or columns have changed: CREATE OR REPLACE alone refuses other columns, and
-- makes a second function of other argument types.
CREATE OR REPLACE FUNCTION _define_function(_name text, _arguments text, _returns text, _definition text) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    statement text := format('CREATE OR REPLACE FUNCTION pgrerank.%I(%s) RETURNS %s %s',
        _name, _arguments, _returns, _definition);
BEGIN
    BEGIN
        EXECUTE statement;
    EXCEPTION WHEN invalid_function_definition THEN
        PERFORM _drop_functions(_name);
        EXECUTE statement;
    END;
    PERFORM _drop_functions(_name, (
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = _name ORDER BY p.oid DESC LIMIT 1))
    WHERE 1 < (
        SELECT count(*) FROM pg_proc p WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = _name);
END
$$;
