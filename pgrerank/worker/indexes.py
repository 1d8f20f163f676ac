"""Indexes of large tenants: made and dropped beside whatever else a worker does."""

from __future__ import annotations

import asyncio
import logging
import time

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


async def change_indexes(dsn: str, reranker: str | None = None) -> float:
    """Run what pgrerank.tenant_index_changes says, each statement by itself.

    Returns the seconds that looking took. Raises psycopg.Error where the database can't be reached
    or a statement fails, InstallError where the schema is of another version; an index that was
    begun and not finished is dropped at the next call.
    """
    async with await connect(dsn, "indexes") as connection:
        begun = time.monotonic()
        cursor = await connection.execute(
            "SELECT c.reranker, c.statement FROM pgrerank.tenant_index_changes(%s) c", (reranker,)
        )
        changes = await cursor.fetchall()
        took = time.monotonic() - begun
        for name, statement in changes:
            log.info("reranker %s: %s", name, statement)
            await connection.execute(statement)
    return took
