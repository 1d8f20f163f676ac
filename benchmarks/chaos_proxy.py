"""A TCP proxy of our own, through which a worker is reached, and whose network can be spoilt."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from concurrent.futures import Future

CHUNK = 65536


class Proxy:
    """Passes bytes on from a port of its own to `target`, both on 127.0.0.1.

    It runs in a loop in a thread. What is sent while the network is cut arrives once it is mended,
    as it does with TCP.
    """

    def __init__(self, target: int, seed: str) -> None:
        self.target = target
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing, self._delay = False, 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        started: Future[asyncio.Server] = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        )
        self.port = started.result(10).sockets[0].getsockname()[1]

    def spoil(self, how: str) -> None:
        """`cut`: nothing passes, nothing is told; `refuse`: all is reset; `slow`: all is late."""
        self._loop.call_soon_threadsafe(self._spoil, how)

    def mend(self) -> None:
        """Let everything pass again."""
        self._loop.call_soon_threadsafe(self._spoil, "")

    def _spoil(self, how: str) -> None:
        (self._passing.clear if how == "cut" else self._passing.set)()
        self._refusing, self._delay = how == "refuse", 0.3 if how == "slow" else 0.0
        if self._refusing:
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._passing.wait()
            if not self._refusing:
                there, back = await asyncio.open_connection("127.0.0.1", self.target)
                self._writers.add(back)
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._passing.wait()
                if self._delay:
                    await asyncio.sleep(self._random.uniform(0, self._delay))
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()
