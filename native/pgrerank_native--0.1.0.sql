-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pgrerank_native" to load this file. \quit

CREATE FUNCTION maxsim(query bytea, document bytea) RETURNS real
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 400
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_packed';
COMMENT ON FUNCTION maxsim(bytea, bytea) IS 'MaxSim of a query''s and a document''s packed token vectors';

CREATE FUNCTION _maxsim_add(state internal, query bytea, part bytea) RETURNS internal
LANGUAGE c IMMUTABLE PARALLEL SAFE COST 200
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_add';

CREATE FUNCTION _maxsim_combine(state internal, other internal) RETURNS internal
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_combine';

CREATE FUNCTION _maxsim_serialize(state internal) RETURNS bytea
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_serialize';

CREATE FUNCTION _maxsim_deserialize(serialized bytea, internal) RETURNS internal
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_deserialize';

CREATE FUNCTION _maxsim_sum(state internal) RETURNS real
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_sum';

CREATE AGGREGATE maxsim_agg(query bytea, part bytea) (
    sfunc = _maxsim_add, stype = internal, sspace = 512, finalfunc = _maxsim_sum,
    combinefunc = _maxsim_combine, serialfunc = _maxsim_serialize, deserialfunc = _maxsim_deserialize, parallel = safe
);
COMMENT ON AGGREGATE maxsim_agg(bytea, bytea) IS
    'MaxSim of a query''s and a document''s packed token vectors, the document''s in several parts';

-- For many queries at once: each part is read once for all that are numbered, from 1.
CREATE FUNCTION _maxsim_add_each(state internal, queries bytea[], numbers int[], part bytea) RETURNS internal
LANGUAGE c IMMUTABLE PARALLEL SAFE COST 2000
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_add_each';

CREATE FUNCTION _maxsim_sum_each(state internal) RETURNS real[]
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_sum_each';

CREATE AGGREGATE _maxsim_each(queries bytea[], numbers int[], part bytea) (
    sfunc = _maxsim_add_each, stype = internal, sspace = 8192, finalfunc = _maxsim_sum_each, parallel = safe
);
COMMENT ON AGGREGATE _maxsim_each(bytea[], int[], bytea) IS
    'maxsim_agg of those queries that are numbered, in the order of the numbers';

CREATE FUNCTION maxsim_instructions() RETURNS text
LANGUAGE c STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_instructions';
COMMENT ON FUNCTION maxsim_instructions() IS 'Instruction set that maxsim uses: amx, avx512, avx2, neon or portable';

-- pgrerank has maxsim(vector[], vector[]) in plain SQL. What uses that keeps working, faster.
DO $$
BEGIN
    IF to_regprocedure('maxsim(vector[], vector[])') IS NOT NULL THEN
        IF EXISTS (SELECT FROM pg_extension WHERE extname = 'pgrerank') THEN
            ALTER EXTENSION pgrerank DROP FUNCTION maxsim(vector[], vector[]);
        END IF;
        ALTER EXTENSION pgrerank_native ADD FUNCTION maxsim(vector[], vector[]);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION maxsim(query vector[], document vector[]) RETURNS real
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 2000
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_vector';
COMMENT ON FUNCTION maxsim(vector[], vector[]) IS 'MaxSim of a query''s and a document''s token vectors';

CREATE FUNCTION maxsim(query halfvec[], document halfvec[]) RETURNS real
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 2000
AS 'MODULE_PATHNAME', 'pgrerank_maxsim_halfvec';
COMMENT ON FUNCTION maxsim(halfvec[], halfvec[]) IS 'MaxSim of a query''s and a document''s token vectors';

-- The way to a worker, which pgrerank._ask_worker calls; docs/how-to/native-kernel.md tells what it is for.
CREATE FUNCTION _worker_connect(worker int, server name, until timestamptz) RETURNS void
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'pgrerank_worker_connect';

CREATE FUNCTION _worker_connected() RETURNS int
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'pgrerank_worker_connected';

CREATE FUNCTION _worker_disconnect() RETURNS void
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'pgrerank_worker_disconnect';

CREATE FUNCTION _worker_send(request text, most int) RETURNS void
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'pgrerank_worker_send';

CREATE FUNCTION _worker_wait(deadline timestamptz) RETURNS boolean
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'pgrerank_worker_wait';

CREATE FUNCTION _worker_take() RETURNS text
LANGUAGE c STRICT
AS 'MODULE_PATHNAME', 'pgrerank_worker_take';
