"""Runs all checks, each by itself: one that can't look does not keep the others from it."""

from __future__ import annotations

import psycopg
from psycopg import errors

from pgrerank.doctor import models, quality, queue, rights, server, settings, tables, workers
from pgrerank.doctor.finding import Check, Connection, Finding, Severity

SERVER: tuple[Check, ...] = (server.versions, server.schema)
"""Checks that any database can have."""

SCHEMA: tuple[Check, ...] = (
    server.kernel,
    rights.roles,
    rights.sources,
    workers.known_workers,
    workers.answering,
    queue.documents,
    queue.missing,
    queue.setbacks,
    queue.triggers,
    queue.comparisons,
    tables.memory,
    tables.indexes,
    tables.own_embeddings,
    tables.bloat,
    tables.vacuum,
    settings.memory,
    settings.planner,
    settings.parallel,
    models.calibrations,
    models.precisions,
    models.judgements,
    quality.checks,
    quality.degraded,
)
"""Checks of a database that has pgrerank, of this package's version."""

PATIENCE = "10s"
"""How long a check may take."""


def examine(connection: Connection) -> list[Finding]:
    """What is wrong with a database, the worst first. It reads only.

    `connection` is in autocommit mode. Raises psycopg.OperationalError when it is lost. What the
    role may not see is a finding of its own.
    """
    found = [finding for check in SERVER for finding in _run(connection, check)]
    if all(finding.severity < Severity.ERROR for finding in found):
        found += [finding for check in SCHEMA for finding in _run(connection, check)]
    return sorted(found, key=lambda finding: -finding.severity)


def _run(connection: Connection, check: Check) -> list[Finding]:
    name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute(f"SET LOCAL statement_timeout = '{PATIENCE}'")
            connection.execute("SET LOCAL lock_timeout = '1s'")
            return [Finding(found[0], name, *found[1:]) for found in check(connection)]
    except psycopg.Error as error:
        if connection.broken:
            raise
        return [_unseen(connection, name, error)]


def _unseen(connection: Connection, name: str, error: psycopg.Error) -> Finding:
    """That a check could not look."""
    said = error.diag.message_primary or str(error).strip()
    user = connection.info.user
    match error:
        case errors.InsufficientPrivilege():
            return Finding(
                Severity.WARNING,
                name,
                f"role {user}",
                f"may not look: {said}",
                f'GRANT pg_monitor TO "{user}";  -- or run doctor as the schema\'s owner',
            )
        case errors.QueryCanceled() | errors.LockNotAvailable():
            message = f"looking took too long, and was given up: {said}"
            return Finding(Severity.NOTE, name, f"database {connection.info.dbname}", message)
        case errors.UndefinedTable() | errors.UndefinedColumn() | errors.UndefinedFunction():
            return Finding(
                Severity.ERROR,
                name,
                "schema pgrerank",
                f"is not that of this package: {said}",
                "pgrerank install",
            )
    return Finding(Severity.WARNING, name, f"database {connection.info.dbname}", said)
