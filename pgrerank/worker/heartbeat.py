"""The worker's heartbeat, for sessions that are about to connect to it."""

from __future__ import annotations

import asyncio
import logging

import psycopg

from pgrerank.worker.session import open_session

log = logging.getLogger(__name__)

INTERVAL = 0.05
"""Seconds between heartbeats: what a new session waits for at most until it trusts a worker."""


async def beat(dsn: str, begun: asyncio.Event | None = None) -> None:
    """Prove for ever that this event loop turns; sql/80_worker.sql says how sessions read that.

    Run it in the loop that answers requests: a process that is stopped, or a loop that hangs,
    falls silent. A lost connection is opened again after a moment. `begun` is set after the first.
    """
    while True:
        try:
            async with await open_session(dsn, "heartbeat") as connection:
                tick = None
                while True:
                    cursor = await connection.execute("SELECT pgrerank.heartbeat(%s)", (tick,))
                    [tick] = await cursor.fetchone() or [None]
                    if begun is not None:
                        begun.set()
                    await asyncio.sleep(INTERVAL)
        except psycopg.Error as error:
            log.warning("heartbeat: %s", str(error).strip())
            await asyncio.sleep(1.0)
