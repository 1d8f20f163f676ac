-- What a search is asked with, and the typed function that each reranker gets in front of it.

-- The arguments of a search: those of the call, and each setting that one call may be given another value of.
CREATE OR REPLACE FUNCTION _call_arguments() RETURNS TABLE (place bigint, argument text, type text, preset text)
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT row_number() OVER (), a.* FROM (
        VALUES ('query', 'text', 'NULL'), ('top_k', 'int', '10'), ('filter', 'jsonb', 'NULL')
        UNION ALL
        (SELECT s.setting, s.type, 'NULL' FROM _settings() s WHERE s.per_call ORDER BY s.place)
        UNION ALL
        VALUES ('stages', 'text[]', 'NULL'), ('keys', 'text[]', 'NULL'), ('key_scores', 'double precision[]', 'NULL'),
            ('query_embedding', 'vector', 'NULL'), ('query_tokens', 'bytea', 'NULL'),
            ('recall', 'text', $x$'auto'$x$), ('after', 'text[]', 'NULL'), ('generation', 'int', 'NULL'),
            ('strict', 'boolean', 'NULL')) a
$$;

-- For the functions made of them: their list as arguments but those left out, and the expression that makes a call of
-- them.
CREATE OR REPLACE FUNCTION _call_signature(
    _key_type text, _left_out text[] DEFAULT '{}', OUT arguments text, OUT call text)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT
        (SELECT string_agg(concat_ws(' ', a.argument,
            CASE WHEN a.argument IN ('keys', 'after') THEN _key_type || '[]' ELSE a.type END, 'DEFAULT ' || a.preset),
            ', ' ORDER BY a.place) FROM _call_arguments() a WHERE a.argument <> ALL (_left_out)),
        format('ROW(%s)::pgrerank.search_call', (
            SELECT string_agg(CASE
                WHEN c.name = ANY (_left_out) OR c.name = 'found' THEN 'NULL'
                WHEN c.name = 'settings' THEN (
                    SELECT format('jsonb_build_object(%s)',
                        string_agg(format('%1$L, %1$s', s.setting), ', ' ORDER BY s.place))
                    FROM _settings() s WHERE s.per_call)
                WHEN c.name IN ('keys', 'after') THEN c.name || '::text[]'
                ELSE c.name END, ', ' ORDER BY c.place)
            FROM unnest((_attributes('search_call')).names) WITH ORDINALITY c (name, place)))
$$;

-- The columns that a search function returns a key as: named as the source names them, unless an argument or another
-- column is called so, or might be. A list of names with types, and what yields them of a key.
CREATE OR REPLACE FUNCTION _key_results(
    _reranker rerankers, _key text, _taken text[], OUT columns text, OUT expressions text)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT string_agg(format('%I %s', CASE
            WHEN c.name <> ALL (_taken) AND (p.part IS NULL OR c.name !~ '^key_[0-9]+$') THEN c.name
            WHEN p.part IS NULL THEN 'key' ELSE 'key_' || c.place END, coalesce(p.type, _reranker.key_type)),
            ', ' ORDER BY c.place),
        _parts(_reranker, format('(%s)::%s', _key, _reranker.key_type))
    FROM unnest(_reranker.key_columns) WITH ORDINALITY c (name, place)
    LEFT JOIN _parts_of_type(_reranker.key_type) p USING (place)
$$;

-- pgrerank.NAME_search(...), typed by the source's own key, and NAME_search_many(...) beside it. Keys are text on the
-- way, and times are read as they were written in the style ISO alone: others name zones by ambiguous letters.
CREATE OR REPLACE FUNCTION _create_search(_reranker rerankers) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    signature record := _call_signature(_reranker.key_type);
    result record := _attributes('ranked');
    key record := _key_results(
        _reranker, 's.key', result.names || ARRAY(SELECT a.argument FROM _call_arguments() a));
BEGIN
    PERFORM _define_function(_reranker.name || '_search', signature.arguments,
        format('TABLE (%s, %s)', key.columns, substring(result.columns FROM '^key text, (.*)$')),
        format('LANGUAGE sql VOLATILE ROWS 10 SET search_path FROM CURRENT SET datestyle = ''ISO'' AS %L', format(
            $body$
            SELECT %s, %s
            FROM pgrerank._search((pgrerank._followed(%L)).name, %s) s
            $body$, key.expressions, (
                SELECT string_agg(format('s.%I', c.name), ', ' ORDER BY c.place)
                FROM unnest(result.names) WITH ORDINALITY c (name, place) WHERE c.name <> 'key'),
            _reranker.name, signature.call)));
    EXECUTE format('COMMENT ON FUNCTION pgrerank.%I IS %L', _reranker.name || '_search',
        format('Searches %s by reranker %s', _reranker.source, _reranker.name));
    PERFORM _create_search_many(_reranker);
END
$$;
