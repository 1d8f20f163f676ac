"""Continuous checks: what people searched for is searched for again while nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors

from pgrerank.errors import PgrerankError
from pgrerank.worker.session import check_schema, connect

log = logging.getLogger(__name__)

QUIET = 2.0
"""Seconds without a search, after which one may be checked."""
LOOK = 5.0
"""Seconds between two checks at least; they take a twentieth of the time at most."""
NOTHING = 15.0
"""Seconds until the next look where nothing was to be checked."""
LONGEST = "5s"
"""What one check may take."""


class Checks:
    """Checks one query at a time, and breaks off as soon as somebody searches.

    `asked` counts the searches that the worker was asked for, and `is_busy` says whether any runs.
    """

    def __init__(self, dsn: str, asked: Callable[[], int], is_busy: Callable[[], bool]) -> None:
        self._dsn = dsn
        self._asked = asked
        self._is_busy = is_busy

    async def run(self) -> None:
        """Check for ever, whenever the worker has been idle for a while."""
        while True:
            took: float | None = 0.0
            try:
                if await self._is_quiet():
                    took = await self._check()
            except (psycopg.Error, PgrerankError) as error:
                log.warning("checks: %s", str(error).strip())
            await asyncio.sleep(NOTHING if took is None else max(LOOK, 20 * took))

    async def _is_quiet(self) -> bool:
        before = self._asked()
        await asyncio.sleep(QUIET)
        return self._asked() == before and not self._is_busy()

    async def _check(self) -> float | None:
        """Check a query; returns the seconds that it took, None where there was none."""
        async with await connect(self._dsn, "checks") as connection:
            await check_schema(connection)
            cursor = await connection.execute("SELECT pg_is_in_recovery()")
            if await cursor.fetchone() == (True,):
                return None
            await connection.execute(f"SET statement_timeout = '{LONGEST}'")
            await connection.execute("SET max_parallel_workers_per_gather = 0")
            cursor = await connection.execute("SELECT reranker, query FROM pgrerank.next_check()")
            chosen = await cursor.fetchone()
            if chosen is None:
                return None
            begun = time.monotonic()
            await self._search(connection, *chosen)
            return time.monotonic() - begun

    async def _search(
        self, connection: psycopg.AsyncConnection[Any], reranker: str, query: str
    ) -> None:
        before = self._asked()
        search = asyncio.create_task(
            connection.execute("SELECT pgrerank.check_search(%s, %s)", (reranker, query))
        )
        try:
            while not search.done() and self._asked() == before and not self._is_busy():
                await asyncio.wait((search,), timeout=0.02)
            if not search.done():
                await connection.cancel_safe()
            await search
        except errors.QueryCanceled:
            if self._asked() != before or self._is_busy():
                await self._forget(connection, reranker, query)
        finally:
            search.cancel()
            with contextlib.suppress(asyncio.CancelledError, psycopg.Error):
                await search

    async def _forget(
        self, connection: psycopg.AsyncConnection[Any], reranker: str, query: str
    ) -> None:
        """Leave a query to be taken again."""
        await connection.execute(
            "DELETE FROM pgrerank.checked_queries c"
            " WHERE c.reranker = %s AND c.query_hash = md5(%s)"
            " AND coalesce(c.hnsw_recall, c.stale) IS NULL",
            (reranker, query),
        )
