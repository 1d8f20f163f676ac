"""Sessions of a worker in its database."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors

from pgrerank.errors import WorkerError
from pgrerank.install import schema


async def open_session(dsn: str, purpose: str) -> psycopg.AsyncConnection[Any]:
    """An autocommit session that says what it is for.

    It checks nothing: what a search asks for is answered also while the schema is newer.
    """
    return await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, application_name=f"pgrerank {purpose}"
    )


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
