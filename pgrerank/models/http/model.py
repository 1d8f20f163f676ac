"""What all models behind endpoints have in common."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from pgrerank.errors import ModelError
from pgrerank.models.http.address import address
from pgrerank.models.http.endpoint import Endpoint, Manners
from pgrerank.models.options import Options
from pgrerank.models.spec import ModelSpec

T = TypeVar("T")

OPTIONS = frozenset({"concurrency", "dialect", "hedge_ms", "key", "key_header", "model"})


class Usage(NamedTuple):
    """What an endpoint was asked since its model was loaded, and how often in vain.

    ``read`` and ``written`` are tokens, and ``cost`` is in the currency of the model's ``prices``;
    None where it is not known.
    """

    requests: int
    failed: int
    read: int | None = None
    written: int | None = None
    cost: float | None = None


class HttpModel:
    """A model at an endpoint, with its options, of which each kind has some ``more``."""

    max_tokens: int | None = None

    def __init__(self, spec: ModelSpec, more: frozenset[str]) -> None:
        self.name = spec.name
        self.options = Options(spec, OPTIONS | more)
        if spec.revision is not None:
            raise ModelError(
                f"model {spec.name}: an endpoint has no revision {spec.revision!r}; what it serves"
                ' is named by the option "model"'
            )
        self.model = self.options.text("model")
        hedge = self.options.count("hedge_ms")
        manners = Manners(
            concurrency=self.options.count("concurrency") or Manners().concurrency,
            hedge=None if hedge is None else hedge / 1000,
            key_header=_header(spec, self.options.text("key_header")),
        )
        at = address(spec.name, spec.source, self.options.text("key"))
        self.endpoint = Endpoint(spec.name, at, manners)

    @property
    def usage(self) -> Usage:
        """What the endpoint was asked."""
        return Usage(self.endpoint.requests, self.endpoint.failed)

    def alone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work for a caller that has no event loop."""

        async def run() -> T:
            try:
                return await work()
            finally:
                await self.close()

        return asyncio.run(run())

    async def close(self) -> None:
        """Close the connections of this event loop."""
        await self.endpoint.close()


async def all_or_none(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, run side by side; after an error the rest are cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _header(spec: ModelSpec, name: str | None) -> str | None:
    if name is not None and not re.fullmatch("[A-Za-z0-9-]{1,50}", name):
        raise ModelError(f"model {spec.name}: option key_header: {name!r} is no name of a header")
    return name
