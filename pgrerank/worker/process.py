"""The worker process: ingest loop, scoring servers and proof of life in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

import psycopg

from pgrerank.errors import WorkerError, extra
from pgrerank.wire.server import WireServer
from pgrerank.worker.engine import Engine
from pgrerank.worker.heartbeat import beat
from pgrerank.worker.http.service import Service
from pgrerank.worker.indexes import tend_indexes
from pgrerank.worker.ingest import Ingest
from pgrerank.worker.models import Models
from pgrerank.worker.projections import Projections
from pgrerank.worker.scoring import Scorer
from pgrerank.worker.session import connect, open_session
from pgrerank.worker.settings import WorkerSettings

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that running requests get to finish when the worker is stopped."""
FIRST_HEARTBEAT = 10.0
"""Seconds until the database must have seen a heartbeat; before that, nobody trusts the worker."""


async def run_worker(
    settings: WorkerSettings, *, on_ready: Callable[[int | None], None] = lambda _: None
) -> None:
    """Run until SIGTERM or SIGINT, then stop gracefully.

    `on_ready` is called once with the port that is listened on (None if nothing is served).
    Raises InstallError when the database's schema is of another version or missing; WorkerError, or
    psycopg.Error where it registers or preloads, when the database can't be reached.
    """
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    with contextlib.suppress(psycopg.OperationalError):  # one that is down may come up yet
        await (await connect(settings.dsn, "start")).close()
    models = Models(settings.dsn)
    projections = Projections(settings.dsn)
    engine = Engine(capacity=settings.queue)
    scorer = Scorer(settings.dsn, models, engine, projections, settings.cache)
    ingest = Ingest(settings.dsn, models, engine, projections)
    try:
        if settings.preload:
            await models.preload()
        async with contextlib.AsyncExitStack() as running:
            port = await _serve(settings, scorer, running) if settings.serve else None
            tasks = []
            if settings.ingest:
                tasks.append(asyncio.create_task(ingest.run()))
                running.callback(asyncio.create_task(tend_indexes(settings.dsn)).cancel)
            await _serve_http(settings, Service(models, engine, scorer), running)
            on_ready(port)
            await stop.wait()
            log.info("stopping")
            ingest.stopping.set()
            await asyncio.gather(*tasks)
    finally:
        await asyncio.to_thread(engine.close)


async def _serve(
    settings: WorkerSettings, scorer: Scorer, running: contextlib.AsyncExitStack
) -> int:
    server = WireServer(
        scorer,
        user="pgrerank",
        password=settings.password,
        ssl=settings.tls,
        require_ssl=settings.tls is not None,
    )
    await server.start(settings.host, settings.port)
    running.push_async_callback(server.stop, GRACE)
    if settings.register:
        await _register(settings, server.port)
    begun = asyncio.Event()
    pulse = asyncio.create_task(beat(settings.dsn, begun))
    running.callback(pulse.cancel)
    try:
        await asyncio.wait_for(begun.wait(), FIRST_HEARTBEAT)
    except TimeoutError:
        raise WorkerError(
            f"no heartbeat reached the database within {FIRST_HEARTBEAT:g} s: check --dsn, and "
            "that pgrerank is installed there (pgrerank install)"
        ) from None
    return server.port


async def _serve_http(
    settings: WorkerSettings, service: Service, running: contextlib.AsyncExitStack
) -> None:
    """Serve HTTP clients too, by the same engine."""
    if settings.http is None:
        return
    with extra("serve", "--http"):
        from pgrerank.worker.http.serving import serving_http
    host, port = settings.http
    await running.enter_async_context(
        serving_http(service, host, port, key=settings.http_key, tls=settings.tls, grace=int(GRACE))
    )


async def _register(settings: WorkerSettings, port: int) -> None:
    async with await open_session(settings.dsn, "register") as connection:
        await connection.execute(
            "SELECT pgrerank.set_worker(%s, %s, %s, %s::jsonb)",
            (
                settings.host,
                port,
                settings.password,
                '{"sslmode": "require"}' if settings.tls else "{}",
            ),
        )
