-- The schema itself: who may look at it, and which version it is.

COMMENT ON SCHEMA pgrerank IS 'Reranking inside Postgres: recall, MaxSim, cross-encoder in one call';
GRANT USAGE ON SCHEMA pgrerank TO PUBLIC;

CREATE OR REPLACE FUNCTION schema_version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$ SELECT '0.2.0' $$;
COMMENT ON FUNCTION schema_version() IS 'Version of the installed schema';

-- Conditions that end a stage but not a search (unless it is strict):
--   PGR01 no worker can be reached    PGR02 the deadline passed    PGR03 the worker refused or answered nonsense
CREATE OR REPLACE FUNCTION _fail(code text, message text, hint text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF hint IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message;
    END IF;
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, HINT = hint;
END
$$;

-- Whom pgrerank's functions belong to; side tables and the mapping to the worker are theirs.
CREATE OR REPLACE FUNCTION _owner() RETURNS regrole
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$ SELECT p.proowner::regrole FROM pg_proc p WHERE p.oid = 'pgrerank._owner()'::regprocedure $$;
