"""What the database says of queues and searches, asked now and then; searches are summed up."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple

import psycopg

from pgrerank.errors import PgrerankError
from pgrerank.worker.session import check_schema, connect

log = logging.getLogger(__name__)

PERIOD = 5.0
"""Seconds between two looks, at least; looking takes a hundredth of the time at most."""

QUEUES = """
SELECT r.name, count(p.key) FILTER (WHERE p.failed_at IS NULL),
    count(p.key) FILTER (WHERE p.failed_at IS NOT NULL),
    coalesce(extract(epoch FROM now() - min(p.enqueued_at) FILTER (WHERE p.failed_at IS NULL)), 0),
    EXISTS (SELECT FROM pgrerank.setbacks s WHERE s.reranker = r.name AND s.failures > 0)
FROM pgrerank.rerankers r LEFT JOIN pgrerank.pending p ON p.reranker = r.name
GROUP BY r.name ORDER BY r.name"""
STATS = """
SELECT s.reranker, s.stage, s.milliseconds, s.documents, s.histogram, s.degraded
FROM pgrerank.stats s"""
CHECKS = "SELECT c.reranker, c.measure, c.stage, c.value, c.is_bad FROM pgrerank.checks c"


class Said(NamedTuple):
    """What the database said; `at` is of the monotonic clock. Rows are those of the queries."""

    at: float
    queues: list[tuple[Any, ...]]
    stats: list[tuple[Any, ...]]
    checks: list[tuple[Any, ...]]
    bounds: tuple[float, ...]


class Statistics:
    """Sums searches up and, where somebody wants to know, asks what there is."""

    def __init__(self, dsn: str, *, wanted: bool) -> None:
        self._dsn = dsn
        self._wanted = wanted
        self.said: Said | None = None

    async def run(self) -> None:
        """Look for ever; after a lost connection try again."""
        while True:
            try:
                async with await connect(self._dsn, "statistics") as connection:
                    await connection.execute("SET statement_timeout = '5s'")
                    while True:
                        begun = time.monotonic()
                        await self._look(connection)
                        await asyncio.sleep(max(PERIOD, 100 * (time.monotonic() - begun)))
            except (psycopg.Error, PgrerankError) as error:
                log.warning("statistics: %s", str(error).strip())
            await asyncio.sleep(PERIOD)

    async def _look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await check_schema(connection)
        cursor = await connection.execute("SELECT pg_is_in_recovery()")
        if await cursor.fetchone() == (False,):
            await connection.execute("SELECT pgrerank.sum_searches()")
        if self._wanted:
            queues, stats, checks, bounds = [
                await (await connection.execute(query)).fetchall()
                for query in (QUEUES, STATS, CHECKS, "SELECT unnest(pgrerank.stats_bounds())")
            ]
            upper = tuple(bound for (bound,) in bounds)
            self.said = Said(time.monotonic(), queues, stats, checks, upper)
