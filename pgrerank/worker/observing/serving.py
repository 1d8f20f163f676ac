"""Serves metrics by HTTP, in a thread of its own: searches don't wait for whoever reads them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

CLIENTS = 16
"""Clients at once; more are shut out."""
HEAD = 8192
"""Bytes of a request, at most."""
PATIENCE = 5.0
"""Seconds that a client has to ask, and to read the answer."""
FRESH = 1.0
"""Seconds for which a page is good: however often it is asked for, it is made once in that time."""
APART = 0.02
"""Seconds between two answers, at least."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@contextlib.contextmanager
def serving_metrics(render: Callable[[], bytes], host: str, port: int) -> Iterator[int]:
    """Serve what `render` makes at /metrics; yields the port.

    Raises OSError where the address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=CLIENTS)
    server = _Server(render)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.run(listening)), name="pgrerank-metrics", daemon=True
    )
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.stop()
        thread.join(PATIENCE)


class _Server:
    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._clients: set[asyncio.StreamWriter] = set()
        self._page = b""
        self._made_at = float("-inf")
        self._next = 0.0
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, listening: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._meet, sock=listening, limit=HEAD)
        await self._stop.wait()
        server.close()
        while self._clients:
            for client in self._clients:
                client.transport.abort()
            await asyncio.sleep(0)

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and hang up; a client that dawdles is hung up on."""
        self._clients.add(writer)
        try:
            async with asyncio.timeout(PATIENCE if len(self._clients) <= CLIENTS else 0):
                head = await reader.readuntil(b"\r\n\r\n")
                await self._turn()
                writer.write(self._answer(head))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.transport.abort()
        finally:
            self._clients.discard(writer)

    async def _turn(self) -> None:
        """Wait for one's turn, as everybody must who asks too often."""
        now = time.monotonic()
        self._next = max(now, self._next + APART)
        await asyncio.sleep(self._next - now)

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"GET it.\n")
        if path == b"/":
            return _response("200 OK", b"A worker of pgrerank; its metrics are at /metrics.\n")
        if path != b"/metrics":
            return _response("404 Not Found", b"There is /metrics.\n")
        if time.monotonic() - self._made_at > FRESH:
            self._page = self._render()
            self._made_at = time.monotonic()
        response = _response("200 OK", self._page)
        return response[: -len(self._page)] if method == b"HEAD" else response


def _response(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
