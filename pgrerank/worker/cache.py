"""What a worker has computed for searches, kept while there is room: scores, and queries' vectors.

A result is found by the model and by the texts that it was made of, so that a changed document or
another model is another one, and nothing has to be forgotten. It stays in the worker's memory.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from cachetools import LRUCache

OVERHEAD = 256
"""Bytes that an entry takes besides its value: its key, and its places in dictionaries."""


class Cache:
    """Results by what they were made of; the least recently used go first.

    It belongs to one event loop. `hits` counts results that were found, `computed`
    others, and `saved` the seconds that the former would have taken, by what the latter took.
    """

    def __init__(self, capacity: int, size: Callable[[Any], int]) -> None:
        self._results: LRUCache[Hashable, Any] = LRUCache(
            capacity, getsizeof=lambda result: OVERHEAD + size(result)
        )
        self.hits = 0
        self.computed = 0
        self.saved = 0.0
        self._took = 0.0

    async def get(
        self,
        made_by: Hashable,
        texts: Sequence[tuple[str, ...]],
        compute: Callable[[list[tuple[str, ...]]], Awaitable[Sequence[Any]]],
    ) -> list[Any]:
        """The results for some texts, in their order; `compute` makes those that aren't known.

        `made_by` is all that they depend on besides the texts. Equal texts are computed once.
        """
        keys = [_key(made_by, parts) for parts in texts]
        found = {key: self._results[key] for key in keys if key in self._results}
        missing = {key: parts for key, parts in zip(keys, texts, strict=True) if key not in found}
        self._count(len(keys) - len(missing))
        if missing:
            begun = time.monotonic()
            computed = await compute(list(missing.values()))
            self._took += time.monotonic() - begun
            self.computed += len(missing)
            for key, result in zip(missing, computed, strict=True):
                found[key] = result
                self._keep(key, result)
        return [found[key] for key in keys]

    def _count(self, hits: int) -> None:
        self.hits += hits
        if self.computed:
            self.saved += hits * self._took / self.computed

    def _keep(self, key: Hashable, result: Any) -> None:
        if self._results.getsizeof(result) <= self._results.maxsize:
            self._results[key] = result


def _key(made_by: Hashable, parts: tuple[str, ...]) -> tuple[Hashable, bytes]:
    """What a result is found by; texts by their hash, as a document may be long."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return made_by, digest.digest()
