"""Sessions of a worker in its database."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors

from pgrerank.errors import WorkerError
from pgrerank.install import schema

_TIMEOUTS = [
    *("statement_timeout", "lock_timeout", "transaction_timeout"),
    *("idle_in_transaction_session_timeout", "idle_session_timeout"),
]


async def open_session(dsn: str, purpose: str) -> psycopg.AsyncConnection[Any]:
    """An autocommit session that says what it is for.

    Timeouts that are set for an application, on its database or role, would end the same work of
    ours each time that it is tried. So there are none here, as in sessions of pg_dump; what may
    wait too long sets its own. Nothing is checked: what a search asks for is answered also while
    the schema is newer.
    """
    connection = await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, application_name=f"pgrerank {purpose}"
    )
    try:
        await connection.execute(
            "SELECT set_config(t, '0', false) FROM unnest(%s::text[]) t"
            " WHERE current_setting(t, true) IS NOT NULL"  # not all versions know each
            " AND pg_backend_pid() = %s",  # a pooler's session is also others'
            (_TIMEOUTS, connection.info.backend_pid),
        )
    except BaseException:
        await connection.close()
        raise
    return connection


async def connect(dsn: str, purpose: str) -> psycopg.AsyncConnection[Any]:
    """An autocommit session whose schema fits this worker.

    Raises InstallError where it does not, WorkerError where a pooler is in between, and
    psycopg.OperationalError when none can be had.
    """
    connection = await open_session(dsn, purpose)
    try:
        await _check_direct(connection)
        await check_schema(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def check_schema(connection: psycopg.AsyncConnection[Any]) -> None:
    """See that the schema fits this worker; raises InstallError where it does not."""
    schema.check_version(await _version(connection), connection.info.dbname)


async def _check_direct(connection: psycopg.AsyncConnection[Any]) -> None:
    """Refuse a pooler, whose process ids are not the server's.

    Heartbeats and claims end with the session that they were made in, and a pooler hands the next
    statement to another one, or keeps the session when the worker is dead.
    """
    cursor = await connection.execute("SELECT pg_backend_pid()")
    if await cursor.fetchone() != (connection.info.backend_pid,):
        raise WorkerError(
            f"the worker reached database {connection.info.dbname} through a pooler, such as"
            " pgbouncer: give it the address of Postgres itself; searches may go through the pooler"
        )


async def _version(connection: psycopg.AsyncConnection[Any]) -> str | None:
    try:
        cursor = await connection.execute("SELECT pgrerank.schema_version()")
    except (errors.InvalidSchemaName, errors.UndefinedFunction):
        return None
    row = await cursor.fetchone()
    return None if row is None else str(row[0])
