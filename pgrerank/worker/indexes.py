"""Indexes of large tenants: made and dropped beside whatever else a worker does."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import psycopg

from pgrerank.errors import PgrerankError
from pgrerank.worker.session import connect

log = logging.getLogger(__name__)

LOOK = 60.0
"""Seconds between two looks at what tenants have; longer where looking takes more than a hundredth
of that."""


async def tend_indexes(dsn: str) -> None:
    """Make and drop indexes of tenants for ever, as their documents come and go."""
    while True:
        took = 0.0
        try:
            took = await change_indexes(dsn)
        except (psycopg.Error, PgrerankError) as error:
            log.warning("indexes of tenants: %s", str(error).strip())
        await asyncio.sleep(max(LOOK, 100 * took))


async def change_indexes(dsn: str, only: str | None = None) -> float:
    """Run what pgrerank.tenant_index_changes says of all rerankers, or of one.

    Each statement runs by itself; one that fails is logged, and tried again at the next call. Nor
    does a reranker that is broken keep others from having theirs. Returns the seconds that looking
    took. Raises psycopg.OperationalError where the database can't be reached, InstallError where
    the schema is of another version.
    """
    took = 0.0
    async with await connect(dsn, "indexes") as connection:
        cursor = await connection.execute(
            "SELECT r.name FROM pgrerank.rerankers r WHERE %s::text IS NULL OR r.name = %s"
            " ORDER BY r.name",
            (only, only),
        )
        for (name,) in await cursor.fetchall():
            try:
                took += await _change(connection, name)
            except psycopg.OperationalError:
                raise
            except psycopg.Error as error:
                log.warning("reranker %s: indexes of tenants: %s", name, str(error).strip())
    return took


async def _change(connection: psycopg.AsyncConnection[Any], reranker: str) -> float:
    """Bring one reranker's indexes up to date; the seconds that looking took."""
    begun = time.monotonic()
    cursor = await connection.execute(
        "SELECT statement FROM pgrerank.tenant_index_changes(%s)", (reranker,)
    )
    statements = [statement for (statement,) in await cursor.fetchall()]
    took = time.monotonic() - begun
    for statement in statements:
        log.info("reranker %s: %s", reranker, statement)
        await connection.execute(statement)
    return took
