"""Serves the endpoint by uvicorn, inside the worker's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pgrerank.worker.http.api import make_app
from pgrerank.worker.http.gatekeeper import Gatekeeper
from pgrerank.worker.http.service import Service

log = logging.getLogger(__name__)

CONNECTIONS = 500
"""Clients at once, as over the wire; more are refused."""
HEAD_SECONDS = 10.0
"""From a request's first byte, or a connection's start, to the end of its head."""
DRAIN_SECONDS = 30.0
"""That a client may leave an answer unread."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the worker."""
        yield


class _Protocol(H11Protocol):
    """uvicorn's, with bounds on what it waits for: a request's head, and an answer's reader."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > 2 * CONNECTIONS:  # up to there they are told why
            transport.abort()
            return
        self._head = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._head is None and self._idle():
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
        super().data_received(data)
        if self._head is not None and not self._idle():
            self._head.cancel()
            self._head = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(DRAIN_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


@contextlib.asynccontextmanager
async def serving_http(
    service: Service,
    host: str,
    port: int,
    *,
    key: str | None,
    tls: ssl.SSLContext | None,
    grace: int,
) -> AsyncIterator[int]:
    """Serve until the end of the context; gives the port.

    At the end no request is taken any more, and those that run get `grace` seconds. Raises OSError
    for an address that can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=256)
    config = uvicorn.Config(
        Gatekeeper(make_app(service), key),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=grace,
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    bound = int(listener.getsockname()[1])
    log.info("HTTP on %s:%d%s", host, bound, "" if key else ", without a key")
    try:
        yield bound
    finally:
        server.should_exit = True
        await running
