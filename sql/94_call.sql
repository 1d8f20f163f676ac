-- A call before it runs: its reranker, the rules that it must keep, and its stages.

-- The reranker as a call wants it, with its generation. The side table is held: a new generation that takes over
-- meanwhile waits with dropping the old one until the caller's transaction ends. One that took over in between is
-- read once more.
CREATE OR REPLACE FUNCTION _locked_reranker(_name text, _call search_call) RETURNS rerankers
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    reranker rerankers := _reranker(_name);
    overlay jsonb := _overlay(_call.settings);
    generation generations;
BEGIN
    IF _call.generation IS NOT NULL THEN
        PERFORM _known_generation(_name, _call.generation);
        reranker.generation := _call.generation;
    END IF;
    BEGIN
        EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', _side_table(_name, reranker.generation));
    EXCEPTION WHEN undefined_table THEN
        reranker := _reranker(_name);
    END;
    IF overlay <> '{}' THEN
        reranker := jsonb_populate_record(reranker, overlay);
        generation := _generation(_name, reranker.generation);
        PERFORM _check_settings(reranker, generation);
        PERFORM _check_instruction(reranker, generation);
        PERFORM _check_group(reranker);
    END IF;
    reranker.candidates := greatest(reranker.candidates, _call.top_k);
    RETURN reranker;
END
$$;

-- The rules that a call must keep. Each raises its own error.
CREATE OR REPLACE FUNCTION _check_call(_reranker rerankers, _generation generations, _call search_call) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    most int := 100000;
    embedding_dims int;
    broken record;
BEGIN
    PERFORM _check_source(_reranker);
    IF _call.query_embedding IS NOT NULL THEN
        embedding_dims := CASE WHEN _reranker.embedding_column IS NOT NULL
            THEN (_embedding_column(_reranker.source, _reranker.embedding_column)).dims
            ELSE (SELECT m.dims FROM models m WHERE m.name = _generation.embedding_model) END;
    END IF;
    SELECT * INTO broken FROM (VALUES
        ('invalid_parameter_value',
            _call.keys IS NULL AND _call.query_embedding IS NULL AND coalesce(_call.query, '') !~ '\S',
            'nothing to search for: give a query, keys or query_embedding'),
        ('invalid_parameter_value', cardinality(_call.after) > most,
            format('after has %s elements, expected up to %s', cardinality(_call.after), most)),
        ('invalid_parameter_value',
            _call.top_k BETWEEN 1 AND most AND _call.top_k + cardinality(_call.after) > most,
            format('after has %s elements and top_k is %s, expected up to %s together',
                cardinality(_call.after), _call.top_k, most)),
        ('invalid_parameter_value', (_call.top_k BETWEEN 1 AND most) IS NOT TRUE,
            format('top_k is %s, expected 1 to %s', coalesce(_call.top_k::text, 'NULL'), most)),
        ('invalid_parameter_value', cardinality(_call.keys) > most,
            format('keys has %s elements, expected up to %s', cardinality(_call.keys), most)),
        ('invalid_parameter_value',
            _call.key_scores IS NOT NULL AND cardinality(_call.key_scores) IS DISTINCT FROM cardinality(_call.keys),
            format('key_scores has %s elements, expected one for each of the %s keys',
                cardinality(_call.key_scores), coalesce(cardinality(_call.keys), 0))),
        ('invalid_parameter_value', (
                SELECT bool_or(s.score = 'NaN' OR abs(s.score) > 3e38) FROM unnest(_call.key_scores) s (score)),
            'key_scores has one that is no number of type real, expected numbers or NULL'),
        ('invalid_parameter_value', (_call.recall IN ('auto', 'hnsw', 'exact')) IS NOT TRUE,
            format('recall is %L, expected auto, hnsw or exact', _call.recall)),
        ('data_exception', embedding_dims <> vector_dims(_call.query_embedding),
            format('query_embedding: expected %s dimensions, not %s',
                embedding_dims, vector_dims(_call.query_embedding)))
    ) rules (code, is_broken, message)
    WHERE rules.is_broken LIMIT 1;
    IF FOUND THEN
        PERFORM _raise(broken.code, broken.message);
    ELSIF _call.query_tokens IS NOT NULL THEN
        PERFORM _check_query_tokens(_generation, _call.query_tokens);
    END IF;
END
$$;

-- Given token vectors begin as packed ones do (16 bytes, the dimensions in the seventh and eighth), and have the stored
-- ones' dimensions; whoever scores them reads the rest.
CREATE OR REPLACE FUNCTION _check_query_tokens(_generation generations, _tokens bytea) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    stored_dims int := coalesce(_generation.token_dims, (
        SELECT m.dims FROM models m WHERE m.name = _generation.late_interaction_model));
    given_dims int;
BEGIN
    IF octet_length(_tokens) < 16 OR substring(_tokens FOR 4) <> 'pgrt' THEN
        PERFORM _raise('data_exception', 'query_tokens are not packed token vectors',
            'pgrerank.tokens.pack makes them.');
    END IF;
    given_dims := get_byte(_tokens, 6) + 256 * get_byte(_tokens, 7);
    IF given_dims <> stored_dims THEN
        PERFORM _raise('data_exception',
            format('query_tokens: expected %s dimensions, not %s', stored_dims, given_dims),
            CASE WHEN _generation.token_dims IS NOT NULL
                 THEN 'They want the projection in pgrerank.projections, as documents have it.' END);
    END IF;
END
$$;

-- _possible_stages(reranker, generation, has_text, has_tokens): the stages that the reranker has models and a call has
-- input for. It is written out of the stages' own conditions.
DO $do$
BEGIN
    EXECUTE format($sql$
        CREATE OR REPLACE FUNCTION _possible_stages(
            _reranker rerankers, _generation generations, _has_text boolean, _has_tokens boolean) RETURNS text[]
        LANGUAGE sql STABLE
        SET search_path FROM CURRENT
        AS $body$
            SELECT array_agg(s.stage ORDER BY s.place)
            FROM (SELECT (_reranker).*) r, (SELECT (_generation).*) g,
                (SELECT _has_text AS has_text, _has_tokens AS has_tokens) h,
                LATERAL (VALUES %s) s (place, stage, is_possible)
            WHERE s.is_possible
        $body$ $sql$, (SELECT string_agg(format('(%s, %L, %s)', s.place, s.stage, s.runs_if), ', ') FROM _stages() s));
END
$do$;

-- The stages of a call, in the order in which they run: those asked for, or all that are possible and that the blend
-- gives a weight. Legs of recall stand apart: where none is asked for, those run that would otherwise.
CREATE OR REPLACE FUNCTION _stages_of_call(
    _reranker rerankers, _generation generations, _call search_call,
    OUT legs text[], OUT others text[], OUT need_tokens boolean)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    possible text[] := _possible_stages(
        _reranker, _generation, coalesce(_call.query ~ '\S', false), _call.query_tokens IS NOT NULL);
    weighted text[] := _weighted(possible, _reranker.blend);
    wanted text[] := coalesce(_call.stages, weighted);
BEGIN
    IF NOT wanted <@ coalesce(possible, '{}') THEN
        PERFORM _raise('invalid_parameter_value',
            format('stages %s can''t all run: possible here are %s', wanted, possible),
            (SELECT string_agg(s.wants, '; ' ORDER BY s.place) || '.' FROM _stages() s));
    END IF;
    SELECT coalesce(
            array_agg(s.stage ORDER BY s.place) FILTER (WHERE s.is_leg AND s.stage = ANY (wanted)),
            array_agg(s.stage ORDER BY s.place) FILTER (WHERE s.is_leg AND s.stage = ANY (weighted)),
            '{dense}'),
        coalesce(array_agg(s.stage ORDER BY s.place) FILTER (WHERE NOT s.is_leg AND s.stage = ANY (wanted)), '{}'),
        coalesce(bool_or(s.needs_tokens) FILTER (WHERE s.stage = ANY (wanted)), false)
    INTO legs, others, need_tokens
    FROM _stages() s;
END
$$;

-- Of these stages those that a blend gives a weight, and those whose scores aren't blended, if what follows them runs.
-- Where no leg of recall has a weight, all make the pool; nothing is left out where there is no blend.
CREATE OR REPLACE FUNCTION _weighted(_stages text[], _blend jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(s.stage)
    FROM (
        SELECT s.*, coalesce(_blend -> s.stage > '0', false) AS has_weight FROM _stages() s
        WHERE s.stage = ANY (_stages)) s
    WHERE _blend = '{}' OR s.has_weight
        OR (s.is_leg AND _weights_of(_blend, ARRAY(
            SELECT l.stage FROM _stages() l WHERE l.is_leg AND l.stage = ANY (_stages))) IS NULL)
        OR (NOT s.is_blended AND (
            SELECT coalesce(bool_or(_blend -> l.stage > '0'), true) FROM _stages() l WHERE l.only_after = s.stage))
$$;

-- What a call is to do, if it may. Calls that differ by their queries alone have the same plan.
CREATE OR REPLACE FUNCTION _plan_of(_reranker rerankers, _call search_call) RETURNS search_plan
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    generation generations := _generation(_reranker.name, _reranker.generation);
    plan search_plan;
BEGIN
    PERFORM _check_call(_reranker, generation, _call);
    SELECT c.legs, c.others, c.need_tokens INTO plan.legs, plan.stages, plan.needs_tokens
    FROM _stages_of_call(_reranker, generation, _call) c;
    plan.scope := _scope(_reranker, generation, _call.filter, NULL);
    RETURN plan;
END
$$;
