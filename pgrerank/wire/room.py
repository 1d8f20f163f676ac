"""Room for large messages: how many bytes of them a server keeps at a time, of all clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

SMALL = 2**20
"""Bytes of a message that needs no room; all clients together have little of these."""


class Room:
    """So many bytes, handed out to those who wait for them. A message waits unread until then."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Have room for a message of `size` bytes within the block."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            async with self._changed:
                self._free += size
                self._changed.notify_all()
