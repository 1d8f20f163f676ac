"""One connection's bytes: a bounded reader, back-pressure both ways, the switch to TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import cast

from pgrerank.wire.types import ConnectionLostError, FatalError

READ_AHEAD = 64 * 1024
"""Bytes kept beyond the message in hand; past that the socket is not read."""

_CLOSE_SECONDS = 2.0
_QUIET_SECONDS = 0.05


class Stream(asyncio.Protocol):
    """Bytes of one connection, for one reading task.

    Memory follows what has arrived, never what a length field claims. `on_lost` is called as soon
    as the client closes its side or the connection breaks, even when nobody reads.
    """

    def __init__(self, on_connect: Callable[[Stream], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_connect = on_connect
        self._buffer = bytearray()
        self._wanted = 0
        self._reader: asyncio.Future[None] | None = None
        self._paused = False
        self._discarding = False
        self._sending = True
        self._failure: Exception | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = asyncio.Event()
        self._closed = asyncio.Event()
        self.on_lost: Callable[[], None] = lambda: None

    @property
    def lost(self) -> bool:
        """Whether the client has closed its side, or the connection is broken."""
        return self._ended.is_set()

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self._transport.get_extra_info("ssl_object") is not None

    @property
    def peer(self) -> str:
        """The client's address as "host:port"."""
        name = self._transport.get_extra_info("peername") or ("unknown", 0)
        return f"{name[0]}:{name[1]}"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand the new connection over; asyncio has set TCP_NODELAY on it."""
        self._transport = cast(asyncio.Transport, transport)
        _keep_alive(transport.get_extra_info("socket"))
        self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        """Keep what arrived, and stop reading the socket when nobody asked for so much."""
        if self._discarding:
            self._sending = True
            return
        self._buffer += data
        if self._reader is not None and len(self._buffer) >= self._wanted:
            self._wake()
        if not self._paused and len(self._buffer) > self._wanted + READ_AHEAD:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Take a half-closed connection as closed: nobody waits for the answer."""
        self._lose()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Release everyone who waits for this connection."""
        self._closed.set()
        self._lose()

    def pause_writing(self) -> None:
        """Let `drain` wait: the client reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        self._writable.set()

    def _lose(self) -> None:
        if not self.lost:
            self._ended.set()
            self._writable.set()
            self.fail(ConnectionLostError("the client closed the connection"))
            self.on_lost()

    # Reading

    def fail(self, failure: Exception) -> None:
        """Raise `failure` in the reader, now or when it next lacks bytes."""
        self._failure = failure
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self, size: int) -> bytes | bytearray:
        """Return exactly `size` bytes; raises ConnectionLostError at the end of the stream."""
        await self._fill(size)
        if len(self._buffer) == size:  # the usual case, and then 20 MB need no copy
            data: bytes | bytearray = self._buffer
            self._buffer = bytearray()
        else:
            data = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
        self._resume_if_room()
        return data

    async def skip(self, size: int) -> None:
        """Drop `size` bytes without keeping them."""
        while size:
            await self._fill(1)
            taken = min(size, len(self._buffer))
            del self._buffer[:taken]
            size -= taken
            self._resume_if_room()

    async def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            if self._failure is not None:
                raise self._failure
            self._wanted = size
            self._resume_if_room()
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader, self._wanted = None, 0

    def _resume_if_room(self) -> None:
        # Also while a handler runs: a socket that isn't read doesn't tell that its client is gone.
        if self._paused and len(self._buffer) <= self._wanted + READ_AHEAD:
            self._paused = False
            self._transport.resume_reading()

    # Writing

    def write(self, data: bytes) -> None:
        """Send `data`, or drop it when the connection is closing."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has taken most of what was written; raises ConnectionLostError."""
        await self._writable.wait()
        if self.lost:
            raise ConnectionLostError("the client closed the connection")

    async def start_tls(self, context: ssl.SSLContext, seconds: float) -> None:
        """Accept an SSLRequest and shake hands within `seconds`.

        Raises FatalError when plain bytes came after the request (CVE-2021-23214: they might be an
        attacker's, and would count as encrypted), OSError when the handshake fails.
        """
        if self._buffer:
            raise FatalError("received unencrypted data after the SSL request")
        self.write(b"S")
        transport = await self._loop.start_tls(
            self._transport,
            self,
            context,
            server_side=True,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=_CLOSE_SECONDS,
        )
        if transport is None:
            raise ConnectionLostError("the client closed the connection during the TLS handshake")
        self._transport, self._paused = transport, False

    # Closing

    async def finish(self, linger: float = 0.0) -> None:
        """Send what is left and close.

        Up to `linger` seconds are spent on dropping what the client is still sending: closing on
        unread bytes resets a TCP connection, and a reset can overtake the last error message.
        """
        self._discarding = True
        self._buffer.clear()
        self._resume_if_room()
        deadline = self._loop.time() + linger
        while self._sending and not self.lost and self._loop.time() < deadline:
            self._sending = False
            await _wait(self._ended, _QUIET_SECONDS)
        self._transport.close()
        await _wait(self._closed, _CLOSE_SECONDS)
        self._transport.abort()

    def refuse(self, last_word: bytes) -> None:
        """Send `last_word` to a client that will not be served, and close."""
        self._discarding = True
        self.write(last_word)
        self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is left unsent."""
        self._transport.abort()


def _keep_alive(connection: socket.socket) -> None:
    # A client whose machine vanished must not hold its place for the two hours of the default.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # not everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
