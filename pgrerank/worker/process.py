"""The worker process: ingest loop, scoring servers and proof of life in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

import psycopg

from pgrerank.errors import extra
from pgrerank.wire.server import WireServer
from pgrerank.worker.engine import LANES, Engine
from pgrerank.worker.http.service import Service
from pgrerank.worker.indexes import tend_indexes
from pgrerank.worker.ingest import Ingest
from pgrerank.worker.models import Models
from pgrerank.worker.observing.observation import Observation
from pgrerank.worker.presence import Address, Load, Presence
from pgrerank.worker.projections import Projections
from pgrerank.worker.scoring import Scorer
from pgrerank.worker.session import connect
from pgrerank.worker.settings import WorkerSettings

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that running requests get to finish when the worker is stopped."""


async def run_worker(
    settings: WorkerSettings, *, on_ready: Callable[[int | None], None] = lambda _: None
) -> None:
    """Run until SIGTERM or SIGINT, then stop gracefully.

    `on_ready` is called once with the port that is listened on (None if nothing is served).
    Raises InstallError when the database's schema is of another version or missing; WorkerError, or
    psycopg.Error where it registers or preloads, when the database can't be reached.
    """
    stop = _stop_signal()
    with contextlib.suppress(psycopg.OperationalError):  # one that is down may come up yet
        await (await connect(settings.dsn, "start")).close()
    models = Models(settings.dsn)
    projections = Projections(settings.dsn)
    observation = Observation(settings)
    observers = observation.observers
    engine = Engine(capacity=settings.queue, on_batch=observers.batch)
    scorer = Scorer(settings.dsn, models, engine, projections, settings.cache, observers)
    ingest = Ingest(settings.dsn, models, engine, projections)
    try:
        if settings.preload:
            await models.preload()
        async with contextlib.AsyncExitStack() as running:
            running.push_async_callback(observation.close)
            server, port, presence = None, None, None
            if settings.serve:
                server = await _listen(settings, scorer, running)
                port, presence = server.port, _presence(settings, server, models, engine)
                running.push_async_callback(presence.leave)
                await presence.begin()
            await _serve_http(settings, Service(models, engine, scorer), running)
            looking = observation.running(
                models, engine, scorer, lambda: server.connections if server else 0
            )
            await running.enter_async_context(looking)
            on_ready(port)
            await _ingest_until(stop, settings, ingest, presence)
    finally:
        await asyncio.to_thread(engine.close)


def _stop_signal() -> asyncio.Event:
    """What is set once the process is told to stop."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return stop


async def _ingest_until(
    stop: asyncio.Event, settings: WorkerSettings, ingest: Ingest, presence: Presence | None
) -> None:
    """Encode documents, if wanted, until told to stop; then say goodbye, and finish the batch."""
    tasks = [asyncio.create_task(ingest.run())] if settings.ingest else []
    tending = asyncio.create_task(tend_indexes(settings.dsn)) if settings.ingest else None
    await stop.wait()
    log.info("stopping")
    if presence:
        await presence.leave()
    if tending:
        tending.cancel()
    ingest.stopping.set()
    await asyncio.gather(*tasks)


async def _listen(
    settings: WorkerSettings, scorer: Scorer, running: contextlib.AsyncExitStack
) -> WireServer:
    server = WireServer(
        scorer,
        user="pgrerank",
        password=settings.password,
        ssl=settings.tls,
        require_ssl=settings.tls is not None,
    )
    await server.start(settings.host, settings.port)
    running.push_async_callback(server.stop, GRACE)
    return server


def _presence(
    settings: WorkerSettings, server: WireServer, models: Models, engine: Engine
) -> Presence:
    host, port = settings.address or (settings.host, server.port)
    address = Address(
        host=host,
        port=port,
        capacity=settings.queue,
        password=settings.password if settings.register else None,
        options={"sslmode": "require"} if settings.tls else {},
    )
    return Presence(
        settings.dsn,
        address,
        lambda: Load(
            models=models.loaded,
            waiting=sum(engine.waiting(lane) for lane in LANES[:-1]),
            sessions=server.connections,
            precisions=models.precisions,
        ),
    )


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
