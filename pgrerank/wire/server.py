"""A server that speaks the Postgres protocol: libpq (dblink, psql, psycopg) can call Python.

It knows the protocol (v3, simple query, SCRAM-SHA-256, TLS, cancel) and nothing of models: a
handler answers the queries. Source: https://www.postgresql.org/docs/18/protocol.html
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl

from pgrerank import __version__
from pgrerank.errors import PgrerankError, RequestError
from pgrerank.wire import messages
from pgrerank.wire.connection import Connection, Rules
from pgrerank.wire.room import Room
from pgrerank.wire.scram import ScramVerifier
from pgrerank.wire.startup import Gate
from pgrerank.wire.stream import Stream
from pgrerank.wire.types import FatalError, Handler, Rows, Session

__all__ = ["Handler", "RequestError", "Rows", "Session", "WireServer", "WireServerError"]

log = logging.getLogger("pgrerank.wire.server")

_CANCEL_SECONDS = 2.0


class WireServerError(PgrerankError):
    """A wire server is asked for what it can't do."""


class WireServer:
    """Serves `handler` to libpq clients; see `pgrerank.wire.types.Handler`.

    user, password: whom to let in. `user` None takes any name, `password` None asks for none.
    ssl, require_ssl: the context for TLS, and whether plain connections are refused.
    max_message: the longest message taken, in bytes. Of those above a MiB it keeps twice as much at
    a time, of all clients; others wait unread.
    max_connections, max_unauthenticated: more clients than that get FATAL 53300.
    authentication_seconds: the time a client has from its first byte to being known.
    server_version: what clients are told; its first word must look like a Postgres version.

    Raises PasswordUnusableError, and WireServerError for `require_ssl` without `ssl`.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        user: str | None,
        password: str | None,
        ssl: ssl.SSLContext | None,
        require_ssl: bool = False,
        max_message: int = 256 * 2**20,
        max_connections: int = 500,
        max_unauthenticated: int = 100,
        authentication_seconds: float = 10.0,
        server_version: str = f"15.0 (pgrerank {__version__})",
    ) -> None:
        if require_ssl and ssl is None:
            raise WireServerError("require_ssl needs a certificate: give an SSLContext as ssl")
        verifier = None if password is None else ScramVerifier(user, password)
        gate = Gate(user, verifier, ssl, require_ssl, authentication_seconds)
        self._rules = Rules(handler, gate, max_message, Room(2 * max_message), server_version)
        self._max_connections = max_connections
        self._max_unauthenticated = max_unauthenticated
        self._server: asyncio.Server | None = None
        self._stopping = False
        self._unknown: set[Connection] = set()
        self._sessions: dict[int, Connection] = {}
        self._tasks: dict[asyncio.Task[None], Connection] = {}

    @property
    def port(self) -> int:
        """The port it listens on; with port 0 given to `start`, the one that the system chose."""
        if self._server is None or not self._server.sockets:
            raise WireServerError("the wire server does not listen: call start() first")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """The number of authenticated clients."""
        return len(self._sessions)

    async def start(self, host: str, port: int) -> None:
        """Listen on `host`:`port` (TCP); raises OSError when it can't, as for a port in use."""
        if self._server is not None:
            raise WireServerError("the wire server was started before; make a new one")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Stream(self._connect), host, port, backlog=256
        )
        trust = "" if self._rules.gate.verifier else ", without a password"
        log.info("listening on %s:%d%s", host, self.port, trust)

    async def stop(self, grace_seconds: float) -> None:
        """Stop accepting, let running requests finish within the grace, then end all connections.

        Idle clients are sent FATAL 57P01 at once, the others after their answer. A request that
        does not yield to its cancellation within 2 s more is left behind.
        """
        if self._server is None:
            return
        self._stopping = True
        self._server.close()
        for connection in [*self._tasks.values()]:
            connection.stop()
        await self._ended(grace_seconds)
        for connection in [*self._tasks.values()]:
            connection.stop_now()
        await self._ended(_CANCEL_SECONDS)
        for task, connection in [*self._tasks.items()]:
            log.warning("breaking the connection of %s: it does not end", connection.peer)
            connection.abort()
            task.cancel()
        await self._ended(_CANCEL_SECONDS)
        log.info("stopped")

    async def _ended(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait([*self._tasks], timeout=seconds)

    def _connect(self, stream: Stream) -> None:
        if self._stopping or len(self._unknown) >= self._max_unauthenticated:
            log.warning("refusing %s: stopping, or too many are connecting", stream.peer)
            stream.refuse(messages.error("too many clients are connecting", "53300", "FATAL"))
            return
        connection = Connection(stream, self._rules, self)
        self._unknown.add(connection)
        task = asyncio.ensure_future(connection.run(lambda: self._unknown.discard(connection)))
        self._tasks[task] = connection
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        connection = self._tasks.pop(task)
        self._unknown.discard(connection)
        for process_id in [p for p, c in self._sessions.items() if c is connection]:
            del self._sessions[process_id]
        if not task.cancelled() and task.exception() is not None:
            log.error("a connection failed", exc_info=task.exception())

    # What connections ask of it: pgrerank.wire.connection.Sessions

    def register(self, connection: Connection) -> int:
        """Take in an authenticated connection and name its process id."""
        if len(self._sessions) >= self._max_connections:
            raise FatalError("sorry, too many clients already", sqlstate="53300")
        # Drawn by chance: an id that can't be foreseen guards the short cancel key of protocol 3.0.
        process_id = secrets.randbelow(2**31 - 1) + 1
        while process_id in self._sessions:
            process_id = secrets.randbelow(2**31 - 1) + 1
        self._sessions[process_id] = connection
        return process_id

    def cancel(self, process_id: int, key: bytes) -> None:
        """Cancel the running request of the client that holds `process_id` and its key."""
        connection = self._sessions.get(process_id)
        if connection is not None:
            connection.cancel(key)
