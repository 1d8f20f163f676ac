"""Documents that wait or failed, rerankers set aside, and writes that nobody sees."""

from __future__ import annotations

from pgrerank.doctor.finding import Connection, Found, Severity, ask

LATE = 600
"""Seconds after which a document that waits to be encoded is late."""


def documents(connection: Connection) -> Found:
    """Documents that failed, or have waited for long."""
    rows = ask(
        connection,
        "SELECT p.reranker, count(*) FILTER (WHERE p.failed_at IS NOT NULL) AS failed,"
        " count(*) FILTER (WHERE p.failed_at IS NULL) AS waiting, now() - min(p.enqueued_at)"
        " FILTER (WHERE p.failed_at IS NULL) AS waited, (array_agg(p.last_error"
        " ORDER BY p.failed_at DESC) FILTER (WHERE p.failed_at IS NOT NULL))[1] AS last_error"
        " FROM pgrerank.pending p GROUP BY p.reranker ORDER BY p.reranker",
    )
    for row in rows:
        about = f"reranker {row.reranker}"
        if row.failed:
            message = f"{row.failed} documents failed, the last: {row.last_error}"
            remedy = f"SELECT pgrerank.enqueue('{row.reranker}', retry_failed => true);"
            yield Severity.ERROR, about, message, remedy
        seconds = row.waited.total_seconds() if row.waited else 0
        if seconds > LATE:
            message = f"{row.waiting} documents wait to be encoded, the oldest for {seconds:.0f} s"
            yield Severity.WARNING, about, message, "pgrerank worker --no-serve  # one more"


def missing(connection: Connection) -> Found:
    """Documents that are neither encoded nor waiting, and sources that have gone."""
    for row in ask(connection, "SELECT * FROM pgrerank.status"):
        about = f"reranker {row.reranker}"
        if row.source_rows is None and row.last_error:
            remedy = f"SELECT pgrerank.drop_reranker('{row.reranker}');"
            yield Severity.ERROR, about, row.last_error, remedy
            continue
        count = (row.source_rows or 0) - (row.encoded or 0) - row.pending - row.failed
        if count > 0:
            message = f"{count} of {row.source_rows} documents are neither encoded nor waiting"
            yield Severity.WARNING, about, message, f"SELECT pgrerank.enqueue('{row.reranker}');"


def setbacks(connection: Connection) -> Found:
    """Generations that can't be worked at."""
    rows = ask(
        connection,
        "SELECT * FROM pgrerank.setbacks s WHERE s.failures > 0 OR s.missed_writes",
    )
    for row in rows:
        about = f"reranker {row.reranker}"
        message = (
            f"generation {row.generation} is set aside until {row.until:%H:%M:%S}: {row.error}"
        )
        yield Severity.ERROR, about, message, f"pgrerank backfill {row.reranker}  # when mended"


def triggers(connection: Connection) -> Found:
    """Triggers that are disabled or missing: writes go by."""
    rows = ask(
        connection,
        "SELECT r.name, r.source::regclass::text AS source, t.table_name, string_agg(t.tgname, ', '"
        " ORDER BY t.tgname) AS names, string_agg(format('ENABLE TRIGGER %I', t.tgname), ', '"
        " ORDER BY t.tgname) FILTER (WHERE t.tgname IS NOT NULL) AS actions"
        " FROM pgrerank.rerankers r JOIN pg_class c ON c.oid = r.source"
        " LEFT JOIN (SELECT t.tgname, t.tgrelid::regclass::text AS table_name, t.tgenabled,"
        "  split_part(encode(t.tgargs, 'escape'), '\\000', 1) AS reranker"
        "  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
        "  WHERE p.pronamespace = 'pgrerank'::regnamespace AND p.proname = '_sync') t"
        " ON t.reranker = r.name WHERE c.relkind IN ('r', 'p')"
        " AND (t.tgname IS NULL OR t.tgenabled NOT IN ('O', 'A')) GROUP BY 1, 2, 3 ORDER BY 1, 3",
    )
    for row in rows:
        if row.names is None:
            message = f"{row.source} has no trigger: what is written there is found late"
            remedy = f"SELECT pgrerank.reconcile('{row.name}', anew => true);"
        else:
            message = f"{row.table_name} has triggers that are disabled: {row.names};"
            message += " what is written there is found late"
            remedy = f"ALTER TABLE {row.table_name} {row.actions};"
        yield Severity.ERROR, f"reranker {row.name}", message, remedy


def comparisons(connection: Connection) -> Found:
    """Whether idle workers get round to comparing documents with what is stored of them."""
    rows = ask(
        connection,
        "SELECT s.name, now() - s.whole_at AS age FROM (SELECT r.name, max(c.whole_at) AS whole_at,"
        " r.created_at FROM pgrerank.rerankers r LEFT JOIN pgrerank.reconciliations c"
        " ON (c.reranker, c.generation) = (r.name, r.generation) GROUP BY r.name) s"
        " WHERE coalesce(s.whole_at, s.created_at) < now() - interval '1 day'",
    )
    for row in rows:
        when = "never" if row.age is None else f"{row.age.total_seconds() / 3600:.0f} hours ago"
        message = f"documents and what is stored of them were compared last {when}"
        yield Severity.WARNING, f"reranker {row.name}", message, f"pgrerank reconcile {row.name}"
