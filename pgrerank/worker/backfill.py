"""Encodes whatever a reranker lacks, in this process, beside any worker that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pgrerank.worker.engine import Engine
from pgrerank.worker.indexes import change_indexes
from pgrerank.worker.ingest import Ingest
from pgrerank.worker.models import Models
from pgrerank.worker.projections import Projections
from pgrerank.worker.session import check_schema, open_session

POLL = 0.25
"""Seconds between two looks at documents that other workers have claimed."""


async def backfill(
    dsn: str,
    reranker: str,
    *,
    retry_failed: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> int:
    """Enqueue what is missing or out of date, encode until nothing is pending, and give large
    tenants their indexes.

    `on_progress` is called with documents done and in total. Returns the total. Raises
    psycopg.Error for an unknown reranker or a lost connection, InstallError where the schema is of
    another version; ModelError for a bad model is
    recorded with the documents instead, as in a worker.
    """
    async with await open_session(dsn, "backfill") as connection:
        await check_schema(connection)
        cursor = await connection.execute(
            "SELECT pgrerank.enqueue(%s, %s)", (reranker, retry_failed)
        )
        [total] = await cursor.fetchone() or [0]
        on_progress(0, total)

        async def pending() -> int:
            cursor = await connection.execute(
                "SELECT count(*) FROM pgrerank.pending WHERE reranker = %s AND failed_at IS NULL",
                (reranker,),
            )
            [count] = await cursor.fetchone() or [0]
            on_progress(max(0, total - count), total)
            return int(count)

        engine = Engine()
        ingest = Ingest(
            dsn, Models(dsn), engine, Projections(dsn), only=reranker, after_claim=pending
        )
        try:
            await ingest.drain()
            while await pending():
                await asyncio.sleep(POLL)
                await ingest.drain()
        finally:
            await asyncio.to_thread(engine.close)
    await change_indexes(dsn, reranker)
    return int(total)
