"""Sessions of a worker in its database."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors

from pgrerank import schema


async def connect(dsn: str, purpose: str) -> psycopg.AsyncConnection[Any]:
    """An autocommit session whose schema fits this worker.

    Raises InstallError where it does not, psycopg.OperationalError when none can be had.
    """
    connection = await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, application_name=f"pgrerank {purpose}"
    )
    try:
        schema.check_version(await _version(connection), connection.info.dbname)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _version(connection: psycopg.AsyncConnection[Any]) -> str | None:
    try:
        cursor = await connection.execute("SELECT pgrerank.schema_version()")
    except (errors.InvalidSchemaName, errors.UndefinedFunction):
        return None
    row = await cursor.fetchone()
    return None if row is None else str(row[0])
