"""One client's connection: admitted, then query after query, each a task that can be cancelled."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from pgrerank.errors import RequestError
from pgrerank.wire import messages
from pgrerank.wire.room import SMALL, Room
from pgrerank.wire.startup import Gate, admit
from pgrerank.wire.stream import Stream
from pgrerank.wire.types import ConnectionLostError, FatalError, Handler, Rows, Session

log = logging.getLogger("pgrerank.wire.server")

_LINGER_SECONDS = 1.0
_AT_WORK_SECONDS = 0.1
_LARGE_SECONDS = 30.0
_EMPTY_QUERY = re.compile(r"[\s;]*+")
_BODYLESS = frozenset(b"XSH")
_EXTENDED = frozenset(b"PBDEC")
_IGNORED = frozenset(b"Hdcf")  # Flush, and what a client may still send after a failed COPY


class Cause(Enum):
    """Why a request was cancelled, and the SQLSTATE and text that tell it."""

    ITSELF = ("XX000", "the worker cancelled the request")
    CLIENT = ("57014", "canceling statement due to user request")
    LOST = ("08006", "the client is gone")
    STOP = ("57P01", "the worker is stopping: terminating connection")


@dataclass(frozen=True, slots=True)
class Rules:
    """What all connections of a server share."""

    handler: Handler
    gate: Gate
    max_message: int
    room: Room
    server_version: str


class Sessions(Protocol):
    """The server, as its connections see it."""

    def register(self, connection: Connection) -> int:
        """Take in an authenticated connection; raises FatalError when there are too many."""

    def cancel(self, process_id: int, key: bytes) -> None:
        """Carry out a CancelRequest."""


class Connection:
    """One connection; `run` serves it from its first byte to its last."""

    def __init__(self, stream: Stream, rules: Rules, registry: Sessions) -> None:
        self._stream = stream
        self._rules = rules
        self._registry = registry
        self._key = b""
        self._request: asyncio.Task[None] | None = None
        """The task that serves us, while it is within a request; nobody may cancel it else."""
        self._cause = Cause.ITSELF
        self._stopping = False
        stream.on_lost = self._lost

    @property
    def peer(self) -> str:
        """The client's address as "host:port"."""
        return self._stream.peer

    def cancel(self, key: bytes) -> None:
        """Cancel the running request, if there is one and the key is ours."""
        if hmac.compare_digest(key, self._key):
            self._cancel_request(Cause.CLIENT)

    def stop(self) -> None:
        """Take no further request; end with FATAL 57P01 as soon as the running one is answered."""
        self._stopping = True
        if self._request is None and not self._stream.lost:
            self._stream.fail(FatalError(Cause.STOP.value[1], sqlstate=Cause.STOP.value[0]))

    def stop_now(self) -> None:
        """Cancel the running request too."""
        self._cancel_request(Cause.STOP)

    def abort(self) -> None:
        """Break the connection."""
        self._stream.abort()

    def _lost(self) -> None:
        self._cancel_request(Cause.LOST)

    def _cancel_request(self, cause: Cause) -> None:
        if self._request is not None and self._cause is Cause.ITSELF:
            self._cause = cause
            self._request.cancel()

    async def run(self, welcomed: Callable[[], None]) -> None:
        """Serve the client; calls `welcomed` when it is authenticated. Raises nothing."""
        stream, linger = self._stream, 0.0
        try:
            if await self._enter():
                welcomed()
                await self._serve()
        except FatalError as error:
            log.info("ending the connection of %s: %s %r", stream.peer, error.sqlstate, str(error))
            stream.write(messages.error(str(error), error.sqlstate, "FATAL"))
            linger = _LINGER_SECONDS if error.sqlstate == "08P01" else 0.0
        except (ConnectionLostError, OSError) as error:
            log.debug("the connection of %s ended: %s", stream.peer, error)
        finally:
            await stream.finish(linger)

    async def _enter(self) -> bool:
        gate = self._rules.gate
        try:
            async with asyncio.timeout(gate.seconds):
                admitted = await admit(self._stream, gate, self._registry.cancel)
        except TimeoutError:
            raise FatalError(f"no authentication within {gate.seconds:g} s") from None
        if admitted is None:
            return False
        startup, last_word = admitted
        self._key = secrets.token_bytes(32 if startup.version >= messages.V3_2 else 4)
        self._session = Session(
            process_id=self._registry.register(self),
            user=startup.user,
            database=startup.database,
            application_name=startup.application_name,
            peer=self._stream.peer,
            tls=self._stream.tls,
        )
        log.debug("%r entered", self._session)
        hello = messages.welcome(self._session, self._key, self._rules.server_version)
        self._stream.write(last_word + hello)
        return True

    async def _serve(self) -> None:
        while not self._stopping:
            kind, length = await self._header()
            if kind == ord("X"):
                return
            if kind == ord("Q") and length <= SMALL:
                await self._query(await self._stream.read(length))
            elif kind == ord("Q"):
                async with self._rules.room.taken(length):
                    await self._query(await self._large_body(length))
            elif kind == ord("S"):
                self._stream.write(messages.READY)
            else:
                await self._stream.skip(length)
                if kind == ord("F"):
                    self._refuse("the function call protocol")
                    self._stream.write(messages.READY)
                elif kind in _EXTENDED:
                    self._refuse("the extended query protocol (parameters, prepared statements)")
                    await self._skip_to_sync()
            await self._stream.drain()
        raise FatalError(Cause.STOP.value[1], sqlstate=Cause.STOP.value[0])

    async def _large_body(self, length: int) -> bytes | bytearray:
        """A query's bytes, which must come in time as they keep room from others."""
        try:
            async with asyncio.timeout(_LARGE_SECONDS):
                return await self._stream.read(length)
        except TimeoutError:
            raise FatalError(
                f"a message of {length} bytes did not arrive within {_LARGE_SECONDS:g} s"
            ) from None

    async def _header(self) -> tuple[int, int]:
        header = await self._stream.read(5)
        kind, length = header[0], int.from_bytes(header[1:]) - 4
        if kind not in b"QXSF" and kind not in _EXTENDED and kind not in _IGNORED:
            raise FatalError(f"invalid message type {kind}")
        if length < 0 or (kind in _BODYLESS and length):
            raise FatalError(f"a message of type {chr(kind)} can't be {length + 4} bytes long")
        if length > self._rules.max_message:
            raise FatalError(
                f"a message of {length} bytes is longer than {self._rules.max_message}, the most "
                "that this worker takes; send fewer candidates at a time"
            )
        return kind, length

    def _refuse(self, what: str) -> None:
        text = f"the worker does not speak {what}; send a simple query"
        self._stream.write(messages.error(text, "0A000"))

    async def _skip_to_sync(self) -> None:
        while True:
            kind, length = await self._header()
            if kind == ord("X"):
                raise ConnectionLostError("the client said goodbye")
            await self._stream.skip(length)
            if kind == ord("S"):
                self._stream.write(messages.READY)
                return

    async def _query(self, body: bytes | bytearray) -> None:
        if not body or body.find(0) != len(body) - 1:
            raise FatalError(
                "malformed query message: one NUL must stand at its end, and only there"
            )
        try:
            text = str(memoryview(body)[:-1], "utf-8")
        except UnicodeDecodeError as error:
            reply = messages.error(f"the query is not UTF-8: byte {error.start}", "22021")
        else:
            empty = _EMPTY_QUERY.fullmatch(text)
            reply = messages.EMPTY_ANSWER if empty else await self._answer(text)
        self._stream.write(reply + messages.READY)

    async def _answer(self, text: str) -> bytes:
        if self._stream.lost:
            raise ConnectionLostError("the client is gone before its query was begun")
        try:
            return messages.answer(await self._handled(text))
        except RequestError as error:
            return messages.error(str(error), error.sqlstate)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the server ends the connection
                raise
            return self._cancelled()
        except Exception as error:
            # An error's own words may quote the query, so only its kind and place are logged.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("a request failed: %s\n%s", type(error).__name__, frames)  # noqa: TRY400
            return messages.error("the worker failed; its log says where", "XX000")

    async def _handled(self, text: str) -> Rows:
        """Let the handler work in this very task, which saves two turns of the loop; meanwhile it
        may be cancelled, and the client is told that it is at work.
        """
        self._cause = Cause.ITSELF
        self._request = asyncio.current_task()
        self._count_down()
        try:
            return await self._rules.handler(text, self._session)
        finally:
            self._at_work.cancel()
            if self._cause is not Cause.ITSELF and self._request is not None:
                self._request.uncancel()
            self._request = None

    def _count_down(self) -> None:
        loop = asyncio.get_running_loop()
        self._at_work = loop.call_later(_AT_WORK_SECONDS, self._say_at_work)

    def _say_at_work(self) -> None:
        self._stream.write(messages.AT_WORK)
        self._count_down()

    def _cancelled(self) -> bytes:
        sqlstate, text = self._cause.value
        if self._cause is Cause.LOST:
            raise ConnectionLostError(text)
        if self._cause is Cause.STOP:
            raise FatalError(text, sqlstate=sqlstate)
        return messages.error(text, sqlstate)
