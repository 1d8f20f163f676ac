"""A worker's place in its database: announced, alive by its heartbeat, and gone before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from psycopg import errors
from psycopg.types.json import Jsonb

from pgrerank import __version__
from pgrerank.errors import WorkerError
from pgrerank.models.spec import Precision
from pgrerank.worker.session import open_session

log = logging.getLogger(__name__)

INTERVAL = 0.05
"""Seconds between heartbeats: what a new session waits for at most until it trusts a worker."""
REPORT = 1.0
"""Seconds between reports of how busy the worker is."""
FIRST = 10.0
"""Seconds until the database must have seen a heartbeat; before that, nobody trusts the worker."""
FAREWELL = 2.0
"""Seconds that saying goodbye may take."""


class Load(NamedTuple):
    """How busy a worker is: models in memory, requests that wait, clients connected; and the
    models' precisions by their names.
    """

    models: list[str]
    waiting: int
    sessions: int
    precisions: Mapping[str, Precision]


@dataclass(frozen=True)
class Address:
    """Where a worker listens; searches are sent there where a `password` is given."""

    host: str
    port: int
    capacity: int
    password: str | None
    options: dict[str, str]


class Presence:
    """Announces a worker and proves that its event loop turns; sql/79_workers.sql reads that.

    It runs in the loop that answers requests: a process that is stopped, or a loop that hangs,
    falls silent. A lost session is opened again after a moment. Where the database is a standby,
    which can't be written to, the worker beats without a number until that is promoted.
    """

    def __init__(self, dsn: str, address: Address, load: Callable[[], Load]) -> None:
        self._dsn = dsn
        self.address = address
        self._load = load
        self._worker: int | None = None
        self._begun = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Announce the worker; returns after its first heartbeat.

        Raises WorkerError, and psycopg.Error where the database refuses.
        """
        self._task = asyncio.create_task(self._run())
        waiting = asyncio.create_task(self._begun.wait())
        await asyncio.wait(
            (self._task, waiting), timeout=FIRST, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()
        if self._task.done():
            self._task.result()
        if not self._begun.is_set():
            raise WorkerError(
                f"no heartbeat reached the database within {FIRST:g} s: check --dsn, and "
                "that pgrerank is installed there (pgrerank install)"
            )

    async def leave(self) -> None:
        """Say goodbye: new sessions go to other workers from now on."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, psycopg.Error):
            await self._task
        self._task = None
        if self._worker:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(FAREWELL), await self._open() as connection:
                    await connection.execute("SELECT pgrerank.dismiss_worker(%s)", (self._worker,))

    async def _run(self) -> None:
        pause = INTERVAL
        while True:
            try:
                async with await self._open() as connection:
                    await self._announce(connection)
                    pause = INTERVAL
                    await self._beat(connection)
            except psycopg.Error as error:
                if not self._begun.is_set() and not isinstance(error, psycopg.OperationalError):
                    raise
                log.warning("heartbeat: %s", str(error).strip())
            await asyncio.sleep(pause)
            pause = min(1.0, 2 * pause)

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        return await open_session(self._dsn, "heartbeat")

    async def _announce(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._worker is not None and await self._report(connection):
            return
        address = self.address
        values = (
            *(address.host, address.port, address.capacity, address.password),
            *(Jsonb(address.options), __version__),
        )
        try:
            cursor = await connection.execute(
                "SELECT pgrerank.announce_worker(%s, %s, %s, %s, %s, %s)", values
            )
            [self._worker] = await cursor.fetchone() or [None]
            await self._report(connection)
        except errors.ReadOnlySqlTransaction:
            self._worker = 0

    async def _report(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        if self._worker == 0:
            cursor = await connection.execute("SELECT pg_is_in_recovery()")
            return await cursor.fetchone() == (True,)
        address, load = self.address, self._load()
        precisions = {name: one._asdict() for name, one in load.precisions.items()}
        cursor = await connection.execute(
            "SELECT pgrerank.report_worker(%s, %s, %s, %s, %s, %s, %s)",
            (self._worker, address.host, address.port, *load[:-1], Jsonb(precisions)),
        )
        return await cursor.fetchone() == (True,)

    async def _beat(self, connection: psycopg.AsyncConnection[Any]) -> None:
        tick = None
        reported = time.monotonic()
        while True:
            cursor = await connection.execute(
                "SELECT pgrerank.heartbeat(%s, %s)", (self._worker, tick)
            )
            [tick] = await cursor.fetchone() or [None]
            self._begun.set()
            if time.monotonic() - reported > REPORT:
                reported = time.monotonic()
                if not await self._report(connection):
                    return
            await asyncio.sleep(INTERVAL)
