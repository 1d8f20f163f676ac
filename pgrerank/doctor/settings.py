"""Settings of the server that cost."""

from __future__ import annotations

from pgrerank.doctor.finding import Connection, Found, Severity, ask, size
from pgrerank.doctor.tables import ask_tables

MB = 2**20
RELOAD = "SELECT pg_reload_conf();"


def memory(connection: Connection) -> Found:
    """Memory for pages, sorts, and the building of indexes."""
    [row] = ask_tables(
        connection,
        "SELECT coalesce(sum(pg_total_relation_size(t.oid)), 0)::bigint AS bytes,"
        " coalesce(max((SELECT max(pg_relation_size(i.indexrelid)) FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam"
        " WHERE i.indrelid = t.oid AND m.amname = 'hnsw')), 0)::bigint AS index,"
        " pg_size_bytes(current_setting('shared_buffers')) AS shared_buffers,"
        " pg_size_bytes(current_setting('work_mem')) AS work_mem,"
        " pg_size_bytes(current_setting('maintenance_work_mem')) AS maintenance,"
        " current_setting('huge_pages') AS huge_pages,"
        " current_setting('huge_pages_status', true) AS huge_pages_status"
        " FROM tables t WHERE t.is_current",
    )
    if row.bytes > row.shared_buffers:
        is_default = row.shared_buffers <= 128 * MB
        message = f"is {size(row.shared_buffers)}, and side tables take {size(row.bytes)}"
        remedy = f"ALTER SYSTEM SET shared_buffers = '{_megabytes(row.bytes)}MB';"
        remedy += "  -- up to a quarter of the machine's memory; then restart"
        severity = Severity.WARNING if is_default else Severity.NOTE
        yield severity, "shared_buffers", message, remedy
    if row.work_mem < 4 * MB:
        message = f"is {size(row.work_mem)}: sorts of exact and lexical recall go to disk"
        yield Severity.WARNING, "work_mem", message, f"ALTER SYSTEM SET work_mem = '16MB'; {RELOAD}"
    if row.index > row.maintenance:
        message = f"is {size(row.maintenance)}: an HNSW index of {size(row.index)} does not fit"
        message += ", and building it anew takes many times as long"
        remedy = (
            f"ALTER SYSTEM SET maintenance_work_mem = '{_megabytes(2 * row.index)}MB'; {RELOAD}"
        )
        yield Severity.WARNING, "maintenance_work_mem", message, remedy
    is_huge = row.huge_pages_status == "on" or row.huge_pages == "on"
    if row.shared_buffers >= 8192 * MB and not is_huge:
        message = f"are not used for {size(row.shared_buffers)} of shared_buffers"
        remedy = "sysctl -w vm.nr_hugepages=$(postgres -C shared_memory_size_in_huge_pages)"
        yield Severity.WARNING, "huge pages", message, f"{remedy}  # then restart Postgres"


def planner(connection: Connection) -> Found:
    """JIT, which compiles statements for longer than a search takes."""
    [row] = ask(
        connection,
        "SELECT current_setting('jit')::boolean AS is_on,"
        " coalesce(max(c.reltuples), 0)::bigint AS documents"
        " FROM pgrerank.rerankers r JOIN pg_class c ON c.oid = r.source",
    )
    if row.is_on and row.documents > 0:
        message = "is on: large scans are compiled first, for up to a second"
        severity = Severity.WARNING if row.documents >= 100_000 else Severity.NOTE
        yield severity, "jit", message, f"ALTER SYSTEM SET jit = off; {RELOAD}"


def parallel(connection: Connection) -> Found:
    """Parallel workers, which build HNSW indexes and compare all embeddings."""
    names = ("max_parallel_workers", "max_parallel_maintenance_workers", "max_worker_processes")
    rows = ask(
        connection,
        "SELECT s.name FROM pg_settings s WHERE s.name = ANY (%s) AND s.setting = '0'",
        list(names),
    )
    for row in rows:
        message = "is 0: HNSW indexes are built by one process"
        remedy = f"ALTER SYSTEM SET {row.name} = {8 if row.name != names[1] else 2}; {RELOAD}"
        yield Severity.WARNING, row.name, message, remedy


def _megabytes(count: int) -> int:
    return max(1, -(-count // MB))
