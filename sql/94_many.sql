-- Many queries in one call: planned once, encoded together, scored by MaxSim together, and all the rest one after
-- another as in single calls.

-- How many queries go together: no more than find 100,000 candidates.
CREATE OR REPLACE FUNCTION _queries_together(_reranker rerankers) RETURNS int
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT greatest(1, least(100, 100000 / _reranker.candidates)) $$;

-- The calls that these queries make, with the vectors that all of them want. Where these can't be had, each call has
-- its own say of that.
CREATE OR REPLACE FUNCTION _calls_with_vectors(
    _reranker rerankers, _plan search_plan, _call search_call, _queries text[]) RETURNS search_call[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    calls search_call[];
BEGIN
    FOR number IN 1..cardinality(_queries) LOOP
        _call.query := _queries[number];
        calls[number] := _call;
    END LOOP;
    RETURN _with_vectors(_generation(_reranker.name, _reranker.generation), calls, 'dense' = ANY (_plan.legs),
        _plan.needs_tokens, _reranker.instruction,
        clock_timestamp() + cardinality(_queries) * _reranker.timeout);
EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
    IF _call."strict" THEN
        RAISE;
    END IF;
    RETURN calls;
END
$$;

-- The plan of each of these calls, with what is done of it for all of them together: recall and MaxSim, where it is the
-- kernel's. If any of that fails, each call does it all by itself, and has its own say of that.
CREATE OR REPLACE FUNCTION _begun_together(_reranker rerankers, _plan search_plan, _calls search_call[])
RETURNS search_plan[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    generation generations := _confined(
        _generation(_reranker.name, _reranker.generation), (_plan.scope).partitions);
    plans search_plan[] := array_fill(_plan, ARRAY[cardinality(_calls)]);
    outcomes search_outcome[];
    stage text;
BEGIN
    IF ('dense' = ANY (_plan.legs) AND _calls[1].query_embedding IS NULL)
        OR (_plan.needs_tokens AND _calls[1].query_tokens IS NULL) OR _is_diverse(_reranker, generation) THEN
        RETURN plans;
    END IF;
    outcomes := _recall_together(_reranker, generation, _calls, _plan);
    FOREACH stage IN ARRAY _plan.stages LOOP
        EXIT WHEN stage NOT IN ('maxsim_bit', 'maxsim') OR NOT has_native_kernel();
        outcomes := _run_together(stage, _reranker, generation, _calls, outcomes);
    END LOOP;
    FOR number IN 1..cardinality(_calls) LOOP
        IF outcomes[number].pool IS NOT NULL THEN
            plans[number].begun := outcomes[number];
        END IF;
    END LOOP;
    RETURN plans;
EXCEPTION WHEN SQLSTATE 'PGR01' OR SQLSTATE 'PGR02' OR SQLSTATE 'PGR03' THEN
    RETURN array_fill(_plan, ARRAY[cardinality(_calls)]);
END
$$;

CREATE OR REPLACE FUNCTION _search_many(_name text, _queries text[], _call search_call)
RETURNS TABLE (query_number int, document ranked)
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    reranker rerankers := _locked_reranker(_name, _call);
    plan search_plan;
    plans search_plan[];
    calls search_call[];
    done int := 0;
    empty record;
BEGIN
    _queries := ARRAY(SELECT q.query FROM unnest(_queries) q (query));  -- whatever its dimensions and bounds
    SELECT * INTO empty FROM unnest(_queries) WITH ORDINALITY q (query, number)
    WHERE coalesce(q.query, '') !~ '\S' ORDER BY q.number LIMIT 1;
    IF FOUND THEN
        PERFORM _raise('invalid_parameter_value', format('nothing to search for: query %s of %s is %s',
            empty.number, cardinality(_queries), coalesce(quote_literal(empty.query), 'NULL')));
    END IF;
    IF _queries <> '{}' THEN
        _call.query := _queries[1];
        plan := _plan_of(reranker, _call);
    END IF;
    WHILE done < cardinality(_queries) LOOP
        calls := _calls_with_vectors(reranker, plan, _call, _queries[done + 1:done + _queries_together(reranker)]);
        plans := _begun_together(reranker, plan, calls);
        FOR number IN 1..cardinality(calls) LOOP
            RETURN QUERY SELECT done + number, d FROM _answer_of(reranker, calls[number], plans[number]) d;
        END LOOP;
        done := done + cardinality(calls);
    END LOOP;
END
$$;

-- pgrerank.NAME_search_many(queries, ...): what NAME_search takes but what belongs to one query, and its columns.
CREATE OR REPLACE FUNCTION _create_search_many(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    signature record := _call_signature(
        _reranker.key_type::text, '{query,keys,key_scores,query_embedding,query_tokens,after}');
    result record := _attributes('ranked');
    key record := _key_results(_reranker, '(s.document).key', result.names
        || ARRAY(SELECT a.argument FROM _call_arguments() a) || '{queries,query_number}'::text[]);
BEGIN
    PERFORM _define_function(_reranker.name || '_search_many', 'queries text[], ' || signature.arguments,
        format('TABLE (query_number int, %s, %s)', key.columns, substring(result.columns FROM '^key text, (.*)$')),
        format('LANGUAGE sql VOLATILE ROWS 1000 SET search_path FROM CURRENT SET datestyle = ''ISO'' AS %L', format(
            $body$
            SELECT s.query_number, %s, %s
            FROM pgrerank._search_many(%L, queries, %s) s
            $body$, key.expressions, (
                SELECT string_agg(format('(s.document).%I', c.name), ', ' ORDER BY c.place)
                FROM unnest(result.names) WITH ORDINALITY c (name, place) WHERE c.name <> 'key'),
            _reranker.name, signature.call)));
    EXECUTE format('COMMENT ON FUNCTION pgrerank.%I IS %L', _reranker.name || '_search_many',
        format('Searches %s for many queries by reranker %s', _reranker.source, _reranker.name));
END
$$;
