"""Who looks at a worker's requests and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from pgrerank.errors import RequestError
from pgrerank.worker.requests import Envelope

_OUTCOMES = {"53300": "refused", "PGR02": "expired", "57P01": "stopping"}


class Observer(Protocol):
    """Looks on; it may be called from several threads, and raises nothing."""

    def request(self, envelope: Envelope) -> AbstractContextManager[None]:
        """See a request from its beginning to its end, or the error that it ends with."""

    def batch(self, lane: str, items: int, tokens: int, seconds: float) -> None:
        """See a batch that a model has run."""


class Observers:
    """Several of them, as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    @contextmanager
    def request(self, envelope: Envelope) -> Iterator[None]:
        """See a request."""
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer.request(envelope))
            yield

    def batch(self, lane: str, items: int, tokens: int, seconds: float) -> None:
        """See a batch."""
        for observer in self._observers:
            observer.batch(lane, items, tokens, seconds)


def outcome(error: BaseException | None) -> str:
    """How a request ended: `ok`, `refused`, `expired`, `stopping`, `cancelled` or `failed`."""
    match error:
        case None:
            return "ok"
        case RequestError():
            return _OUTCOMES.get(error.sqlstate, "failed")
        case asyncio.CancelledError():
            return "cancelled"
    return "failed"


def call_of(envelope: Envelope) -> str:
    """The name of a request's call."""
    return str(envelope.request.__struct_config__.tag)
