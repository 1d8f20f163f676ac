"""Side tables and their indexes: memory, bloat, statistics."""

from __future__ import annotations

from typing import Any, LiteralString

from pgrerank.doctor.finding import Connection, Found, Severity, ask, size

TABLES: LiteralString = (
    "WITH tables AS MATERIALIZED (SELECT r.name AS reranker, g.number, c.oid,"
    " format('%I.%I', 'pgrerank', c.relname) AS name, c.reltuples, r.generation = g.number"
    " AS is_current, r.distance, r.embedding_column"
    " FROM pgrerank.rerankers r JOIN pgrerank.generations g ON g.reranker = r.name"
    " JOIN pg_class c ON c.relnamespace = 'pgrerank'::regnamespace AND c.relkind = 'r'"
    " AND c.relname ~ format('^%s_%s(_p[0-9]+)?(_passages|_tokens|_bits|_words|_terms)?$', r.name,"
    " g.number)) "
)
"""The side tables of all generations, or their partitions: how a query begins that reads them."""

CHANGED = 1000
"""Rows of a table that may have changed without a VACUUM or ANALYZE."""


def ask_tables(connection: Connection, query: LiteralString) -> list[Any]:
    """The rows of a query over `tables`, the side tables of all generations."""
    return ask(connection, TABLES + query)


def memory(connection: Connection) -> Found:
    """Whether what searches read fits in memory."""
    [row] = ask_tables(
        connection,
        "SELECT coalesce(sum(pg_total_relation_size(t.oid)), 0)::bigint AS bytes,"
        " pg_size_bytes(current_setting('effective_cache_size')) AS cache,"
        " (array_agg(t.reranker ORDER BY pg_total_relation_size(t.oid) DESC))[1] AS largest"
        " FROM tables t WHERE t.is_current",
    )
    if row.bytes > row.cache:
        message = (
            f"take {size(row.bytes)}, more than the {size(row.cache)} that Postgres may count on"
            " for them (effective_cache_size): searches read from disk"
        )
        remedy = f"SELECT pgrerank.alter_reranker('{row.largest}', token_precision => 'bit');"
        remedy += "  -- or more memory, and ALTER SYSTEM SET effective_cache_size"
        yield Severity.WARNING, "side tables", message, remedy


def indexes(connection: Connection) -> Found:
    """HNSW indexes that are missing or can't be used."""
    rows = ask_tables(
        connection,
        "SELECT i.indexrelid::regclass::text AS index, t.name FROM tables t"
        " JOIN pg_index i ON i.indrelid = t.oid WHERE NOT i.indisvalid AND NOT EXISTS ("
        "SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)",
    )
    for row in rows:
        message = "is invalid: it was left half made, costs each write, and serves no search"
        yield (
            Severity.ERROR,
            f"index {row.index}",
            message,
            f"REINDEX INDEX CONCURRENTLY {row.index};",
        )
    rows = ask_tables(
        connection,
        "SELECT t.name, t.distance FROM tables t JOIN pg_attribute a"
        " ON a.attrelid = t.oid AND a.attname = 'embedding' AND a.atttypmod > 0"
        " WHERE NOT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_am m ON m.oid = c.relam WHERE i.indrelid = t.oid AND m.amname = 'hnsw'"
        " AND i.indpred IS NULL)",
    )
    for row in rows:
        message = "has no HNSW index: each search compares all embeddings"
        classes = {"inner_product": "ip"}.get(row.distance, row.distance)
        remedy = f"CREATE INDEX CONCURRENTLY ON {row.name} USING hnsw"
        remedy += f" (embedding halfvec_{classes}_ops);"
        yield Severity.ERROR, f"table {row.name}", message, remedy


def own_embeddings(connection: Connection) -> Found:
    """Sources whose own embedding column no index serves, where they are large."""
    rows = ask(
        connection,
        "SELECT c.oid::regclass::text AS source, r.embedding_column, r.distance, t.typname AS type"
        " FROM pgrerank.rerankers r JOIN pg_class c ON c.oid = r.source"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = r.embedding_column"
        " JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE c.relkind IN ('r', 'p', 'm') AND c.reltuples > 3000 AND NOT EXISTS ("
        "SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m"
        " ON m.oid = x.relam WHERE i.indrelid = c.oid AND m.amname NOT IN ('btree', 'hash', 'gin',"
        " 'gist', 'brin', 'spgist') AND a.attnum = ANY (i.indkey::smallint[]))",
    )
    for row in rows:
        message = f"has no vector index on {row.embedding_column}: each search compares all of it"
        kind = {"inner_product": "ip"}.get(row.distance, row.distance)
        remedy = f"CREATE INDEX CONCURRENTLY ON {row.source} USING hnsw"
        remedy += f' ("{row.embedding_column}" {row.type}_{kind}_ops);'
        yield Severity.WARNING, f"table {row.source}", message, remedy


def bloat(connection: Connection) -> Found:
    """HNSW indexes of much more than their elements take.

    An element of halfvec has 2 bytes a dimension, 32 neighbours of 6 bytes on the lowest layer and
    some on those above, and about 120 bytes besides; pages are filled to two thirds at least.
    """
    rows = ask_tables(
        connection,
        "SELECT i.indexrelid::regclass::text AS index, c.relpages, a.atttypmod AS dims,"
        " pg_relation_size(c.oid) AS bytes, t.reltuples FROM tables t"
        " JOIN pg_index i ON i.indrelid = t.oid AND i.indpred IS NULL"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam"
        " JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = 'embedding'"
        " WHERE m.amname = 'hnsw' AND t.reltuples >= 0 AND a.atttypmod > 0",
    )
    for row in rows:
        expected = 2**18 + 1.5 * row.reltuples * (2 * row.dims + 330)
        if row.bytes > 2 * expected:
            message = f"takes {size(row.bytes)}, where some {size(expected)} would do"
            remedy = f"REINDEX INDEX CONCURRENTLY {row.index};"
            yield Severity.WARNING, f"index {row.index}", message, remedy


def vacuum(connection: Connection) -> Found:
    """Tables that want a VACUUM or ANALYZE, and what should run it."""
    rows = ask_tables(
        connection,
        "SELECT t.name, s.n_dead_tup AS dead, s.n_live_tup AS live,"
        " greatest(s.last_analyze, s.last_autoanalyze) IS NULL AND t.reltuples <= 0 AS is_unknown"
        " FROM (SELECT oid, name, reltuples FROM tables UNION SELECT c.oid, c.oid::regclass::text,"
        " c.reltuples FROM pgrerank.rerankers r JOIN pg_class c ON c.oid = r.source) t"
        " JOIN pg_stat_all_tables s ON s.relid = t.oid ORDER BY t.name",
    )
    for row in rows:
        remedy = f"VACUUM (ANALYZE) {row.name};"
        if row.dead > CHANGED + 0.2 * row.live:
            message = f"has {row.dead} dead rows beside {row.live} live ones"
            yield Severity.WARNING, f"table {row.name}", message, remedy
        elif row.is_unknown and row.live > CHANGED:
            message = f"has {row.live} rows, and was never analysed: plans are guesses"
            yield Severity.WARNING, f"table {row.name}", message, remedy
    [row] = ask(
        connection,
        "SELECT current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean"
        " AS is_on",
    )
    if not row.is_on:
        message = "does not run: tables bloat, and plans go by old statistics"
        remedy = "ALTER SYSTEM SET autovacuum = on; ALTER SYSTEM SET track_counts = on;"
        yield Severity.WARNING, "autovacuum", message, f"{remedy} SELECT pg_reload_conf();"
