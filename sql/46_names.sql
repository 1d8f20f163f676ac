-- Names and types that change: of the source, its schema, its columns. Nothing of pgrerank's depends on a source in a
-- way that would have Postgres refuse to change or drop it; so statements name it, and what they are made of is renamed
-- after it, by columns' numbers.

-- Whether a source and its columns are called as they were when the function of documents was written, or an error. It
-- guards that function: another table that has taken the name isn't read in the source's place.
CREATE OR REPLACE FUNCTION _is_current(_reranker text) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path FROM CURRENT
AS $$
DECLARE
    stored rerankers := _reranker(_reranker);
BEGIN
    IF stored.source_names - 'oid' IS DISTINCT FROM _names_of(stored.source) - 'oid' THEN
        PERFORM _raise('object_not_in_prerequisite_state',
            format('the source of reranker "%s" has been renamed, altered or dropped since it was read', _reranker),
            'A worker, a search or a write follows, as does pgrerank.enqueue.');
    END IF;
    RETURN true;
END
$$;

-- Those columns that have another name since, as an object of old and new names; none where the source is another
-- table, that of a restored dump, whose numbers may differ.
CREATE OR REPLACE FUNCTION _renamed(_then jsonb, _now jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT coalesce(jsonb_object_agg(o.value #>> '{}', n.value), '{}')
    FROM jsonb_each(_then -> 'columns') o JOIN jsonb_each(_now -> 'columns') n USING (key)
    WHERE _then -> 'oid' = _now -> 'oid' AND o.value <> n.value
$$;

-- A name as it is now.
CREATE OR REPLACE FUNCTION _name_now(_renamed jsonb, _name text) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$ SELECT coalesce(_renamed ->> _name, _name) $$;

-- Names in their order, as they are now.
CREATE OR REPLACE FUNCTION _names_now(_renamed jsonb, _names text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE
SET search_path FROM CURRENT
AS $$
    SELECT array_agg(_name_now(_renamed, n.name) ORDER BY n.place) FROM unnest(_names) WITH ORDINALITY n (name, place)
$$;

-- A filter's name as it is now: of a column, or a path that begins with one.
CREATE OR REPLACE FUNCTION _path_now(_renamed jsonb, _name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    head text := substring(_name FROM '^("[^"]+"|[^."]+)');
BEGIN
    IF _renamed ? _name THEN
        RETURN _filter_name(_renamed ->> _name);
    ELSIF _renamed ? btrim(head, '"') THEN
        RETURN _filter_name(_renamed ->> btrim(head, '"')) || substr(_name, length(head) + 1);
    END IF;
    RETURN _name;
END
$$;

-- A filter with its names as they are now.
CREATE OR REPLACE FUNCTION _filter_now(_renamed jsonb, _filter jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_object_agg(
            CASE WHEN f.key IN ('and', 'or', 'not') THEN f.key ELSE _path_now(_renamed, f.key) END,
            CASE WHEN f.key = 'not' THEN _filter_now(_renamed, f.value)
                WHEN f.key IN ('and', 'or') THEN (
                    SELECT coalesce(jsonb_agg(_filter_now(_renamed, e.value) ORDER BY e.n), '[]')
                    FROM jsonb_array_elements(f.value) WITH ORDINALITY e (value, n))
                ELSE f.value END), '{}')
        FROM jsonb_each(_filter) f);
END
$$;

-- Signals with their names as they are now; "boosts" have filters.
CREATE OR REPLACE FUNCTION _signals_now(_renamed jsonb, _signals jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_object_agg(
            CASE s.key WHEN 'boosts' THEN s.key ELSE _path_now(_renamed, s.key) END,
            CASE s.key WHEN 'boosts' THEN (
                SELECT jsonb_agg(b || jsonb_build_object('when', _filter_now(_renamed, b -> 'when')))
                FROM jsonb_array_elements(CASE jsonb_typeof(s.value) WHEN 'array' THEN s.value
                    ELSE jsonb_build_array(s.value) END) b)
                ELSE s.value END), '{}')
        FROM jsonb_each(_signals) s);
END
$$;

-- An expression as it is now: Postgres renames the columns in it.
CREATE OR REPLACE FUNCTION _expression_now(_source regclass, _renamed jsonb, _expression text) RETURNS text
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    columns text := (
        SELECT string_agg(format('%I %s', coalesce(o.name, a.attname), format_type(a.atttypid, a.atttypmod)), ', ')
        FROM pg_attribute a LEFT JOIN jsonb_each_text(_renamed) o (name, new_name) ON o.new_name = a.attname
        WHERE a.attrelid = _source AND a.attnum > 0 AND NOT a.attisdropped);
BEGIN
    RETURN _deparsed(columns, _expression, _renamed);
END
$$;

-- What a generation is made of, as it is called now.
CREATE OR REPLACE FUNCTION _generation_now(_source regclass, _renamed jsonb, _generation generations)
RETURNS generations
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _renamed = '{}' THEN
        RETURN _generation;
    END IF;
    _generation.text_columns := _names_now(_renamed, _generation.text_columns);
    _generation.text_expression := CASE WHEN _generation.text_columns IS NULL
        THEN _expression_now(_source, _renamed, _generation.text_expression)
        ELSE _text_expression(_source, _generation.text_columns, NULL) END;
    _generation.language_expression := _expression_now(_source, _renamed, _generation.language_expression);
    _generation.passage_prefix := _expression_now(_source, _renamed, _generation.passage_prefix);
    _generation.tenant_column := _name_now(_renamed, _generation.tenant_column);
    RETURN _generation;
END
$$;

-- Columns of other types may have expressions mean other functions.
CREATE OR REPLACE FUNCTION _check_generation_code(_source regclass, _generation generations) RETURNS void
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _check_code(_qualified(_source), e.expression)
    FROM unnest(ARRAY[_generation.text_expression, _generation.language_expression, _generation.passage_prefix])
        e (expression)
    WHERE e.expression IS NOT NULL
$$;

-- The reranker of that name, once it has followed what was renamed, unless nothing may be written. SECURITY DEFINER:
-- whoever searches or writes documents first after that need not own the function of documents. It takes nothing from
-- its caller but a name.
CREATE OR REPLACE FUNCTION _followed(_name text) RETURNS rerankers
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET lock_timeout = '1s'
AS $$
DECLARE
    stored rerankers := _reranker(_name);
BEGIN
    IF stored.source_names IS DISTINCT FROM _names_of(stored.source)
        AND NOT current_setting('transaction_read_only')::boolean THEN
        SELECT * INTO stored FROM rerankers r WHERE r.name = _name FOR NO KEY UPDATE;
        PERFORM _follow(stored, _names_of(stored.source));
        stored := _reranker(_name);
    END IF;
    RETURN stored;
END
$$;

-- Ends what wants a source that is there, with its key.
CREATE OR REPLACE FUNCTION _check_source(_reranker rerankers) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    dropped text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = _reranker.source) THEN
        PERFORM _raise('undefined_table', format('the source table of reranker "%s" has been dropped', _reranker.name),
            format('Call pgrerank.drop_reranker(%L).', _reranker.name));
    END IF;
    dropped := (
        SELECT min(c.name) FROM unnest(_reranker.key_columns) c (name)
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = _reranker.source AND a.attname = c.name AND NOT a.attisdropped));
    IF dropped IS NOT NULL THEN
        PERFORM _raise('undefined_column', format('the key column %I of reranker "%s" has been dropped from %s',
            dropped, _reranker.name, _described(_reranker.source)),
            format('Call pgrerank.drop_reranker(%L), and create it again over another key.', _reranker.name));
    END IF;
END
$$;

-- Has a reranker call its source and columns as they are called now. One that has been dropped leaves it as it is. A
-- generation that can't be read any more says so to whoever reads it; alter_reranker makes another.
CREATE OR REPLACE FUNCTION _follow(_reranker rerankers, _now jsonb) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    renamed jsonb := _renamed(_reranker.source_names, _now);
    generation generations;
BEGIN
    IF _now IS NULL OR _now = _reranker.source_names THEN
        RETURN;
    END IF;
    UPDATE rerankers r
    SET source_names = _now, key_columns = _names_now(renamed, r.key_columns),
        embedding_column = _name_now(renamed, r.embedding_column), group_by = _path_now(renamed, r.group_by),
        signals = _signals_now(renamed, r.signals)
    WHERE r.name = _reranker.name RETURNING * INTO _reranker;
    FOR generation IN SELECT * FROM generations g WHERE g.reranker = _reranker.name LOOP
        BEGIN
            PERFORM _check_key_type(_reranker);
            PERFORM _check_generation_code(_reranker.source, generation);
            generation := _generation_now(_reranker.source, renamed, generation);
            PERFORM _check_generation_code(_reranker.source, generation);
            UPDATE generations g
            SET (text_columns, text_expression, language_expression, passage_prefix, tenant_column)
                = (generation.text_columns, generation.text_expression, generation.language_expression,
                generation.passage_prefix, generation.tenant_column)
            WHERE (g.reranker, g.number) = (generation.reranker, generation.number);
            PERFORM _create_documents(_reranker, generation);
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE;
        WHEN OTHERS THEN
            PERFORM _create_unreadable(_reranker, generation, SQLSTATE, SQLERRM);
        END;
    END LOOP;
END
$$;

-- Raises an error where the key has another type than side tables have.
CREATE OR REPLACE FUNCTION _check_key_type(_reranker rerankers) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
AS $$
DECLARE
    changed record;
BEGIN
    SELECT c.name, t.present, t.was INTO changed
    FROM unnest(_reranker.key_columns) WITH ORDINALITY c (name, place)
    LEFT JOIN _parts_of_type(_reranker.key_type) p USING (place),
        LATERAL (SELECT _key_type(_reranker.source, c.name)::regtype AS present,
            coalesce(p.type, _reranker.key_type)::regtype AS was) t
    WHERE t.present <> t.was LIMIT 1;
    IF FOUND THEN
        PERFORM _raise('datatype_mismatch', format('key %I is of type %s, and was of %s: drop the reranker, and create '
            'it again', changed.name, changed.present, changed.was));
    END IF;
END
$$;

-- In place of the function of documents, one that raises an error, whatever is asked of it: its columns must not be
-- constants, by which the planner might know that nothing is wanted. It names all of the source, to have the grants
-- checked.
CREATE OR REPLACE FUNCTION _create_unreadable(_reranker rerankers, _generation generations, _code text, _error text)
RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
DECLARE
    tenant_type regtype := _stored_tenant_type(_reranker, _generation);
    message text := format('reranker "%s" can''t read %s: %s', _reranker.name, _reranker.source, _error);
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS %s ', _documents(_generation),
            _documents_type(_reranker, _generation))
        || format('LANGUAGE sql STABLE AS %L',
            format('SELECT (s::text)::%s, s::text, s::text, (s::text)::%s, s::text%s FROM %s s ', _reranker.key_type,
                tenant_type, CASE WHEN _generation.partitioned THEN ', (s::text)::int' END,
                _qualified(_reranker.source))
            || format('WHERE (SELECT pgrerank._raise(%L, %L)) IS NULL', _code, message));
END
$$;
