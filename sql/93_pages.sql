-- Pages: what a search returns beyond what it has returned before.

-- The outcome without what pages before have had: those documents, and others of their groups. Of an order that has
-- changed since, nothing comes twice, and nothing is passed over.
CREATE OR REPLACE FUNCTION _page_after(_outcome search_outcome, _after text[], _top_k int) RETURNS search_outcome
LANGUAGE plpgsql IMMUTABLE
SET search_path FROM CURRENT
AS $$
BEGIN
    IF _after IS NULL OR _outcome.pool IS NULL THEN
        RETURN _outcome;
    END IF;
    _outcome.before := (SELECT count(DISTINCT a.key) FROM unnest(_after) a (key));
    WITH document AS (
        SELECT c.place, c.key = ANY (_after) AS is_known, coalesce(g.number, c.place) AS number
        FROM unnest(_outcome.candidates) WITH ORDINALITY c (key, place)
        LEFT JOIN unnest(_outcome.groups) WITH ORDINALITY g (number, place) USING (place)
    ), fresh AS (
        SELECT d.place, p.standing, min(p.standing) OVER (PARTITION BY d.number) AS first
        FROM unnest(_outcome.pool[:_outcome.returned]) WITH ORDINALITY p (place, standing)
        JOIN document d USING (place)
        WHERE d.number NOT IN (SELECT k.number FROM document k WHERE k.is_known)
    )
    SELECT coalesce(array_agg(f.place ORDER BY f.standing), '{}'), count(*) FILTER (WHERE f.place_of_group <= _top_k)
    INTO _outcome.pool, _outcome.returned
    FROM (SELECT f.*, dense_rank() OVER (ORDER BY f.first) AS place_of_group FROM fresh f) f;
    RETURN _outcome;
END
$$;
