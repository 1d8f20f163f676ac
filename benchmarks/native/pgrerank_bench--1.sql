\echo Use "CREATE EXTENSION pgrerank_bench" to load this file. \quit

CREATE FUNCTION pair_loop(query vector[], document vector[]) RETURNS real
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION pair_loop IS 'MaxSim with a loop over all pairs of vectors';

CREATE FUNCTION only_read(document bytea) RETURNS real
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME';
COMMENT ON FUNCTION only_read IS 'Reads all bytes, and returns a number that depends on them';
