"""What an engine is given to do: jobs of callers, and the lanes in which they wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pgrerank.errors import RequestError
from pgrerank.models.steps import Input, Prepared, Steps

PREPARED_AT_ONCE = 128
"""Items that are tokenised before a look whether they are wanted still."""


@dataclass(eq=False)
class Job:
    """The items of one caller."""

    lane: str
    steps: Steps
    items: Sequence[Any]
    deadline: float
    dropped: bool = False
    future: Future[list[Any]] = field(default_factory=Future)
    prepared: list[Prepared] = field(default_factory=list)
    outputs: list[list[Any]] = field(default_factory=list)
    waiting: deque[Part] = field(default_factory=deque)
    tokens: int = 0
    missing: int = 0
    has_begun: bool = False

    def prepare(self) -> list[Part]:
        """Tokenise the items, as long as a caller waits; raises what the model raises."""
        self.prepared = []
        for begin in range(0, len(self.items), PREPARED_AT_ONCE):
            self.expire()
            if not self.wanted:
                return []
            self.prepared += self.steps.prepare(self.items[begin : begin + PREPARED_AT_ONCE])
        parts = [
            Part(self, item, place, one)
            for item, prepared in enumerate(self.prepared)
            for place, one in enumerate(prepared.inputs)
        ]
        return sorted(parts, key=lambda part: part.input.tokens)

    def wait(self, parts: Sequence[Part]) -> None:
        """Have the parts wait to be run."""
        self.outputs = [[None] * len(one.inputs) for one in self.prepared]
        self.waiting.extend(parts)
        self.tokens = sum(part.input.tokens for part in parts)
        self.missing = len(parts)

    def join(self) -> list[Any]:
        """The items' results; raises what the model raises."""
        return self.steps.join(self.prepared, self.outputs)

    @property
    def wanted(self) -> bool:
        """Whether a caller still waits for the job."""
        return not (self.dropped or self.future.done())

    def expire(self) -> None:
        """Fail the job with a timeout if its deadline has passed."""
        if time.monotonic() >= self.deadline:
            self._end(
                RequestError("the deadline passed before the work was done", sqlstate="PGR02")
            )

    def fail(self, error: Exception) -> None:
        """Hand over an error, if a caller still waits."""
        self.expire()
        self._end(error)

    def finish(self) -> None:
        """Let the caller go on once all outputs are there."""
        if not self.missing:
            self.expire()
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self.wanted and self.future.set_running_or_notify_cancel():
            if error is None:
                self.future.set_result([])
            else:
                self.future.set_exception(error)


class Part(NamedTuple):
    """An input of a job: the place of its item, and its own among the item's inputs."""

    job: Job
    item: int
    place: int
    input: Input


class Lane:
    """The jobs of one purpose, in the order in which they came, and the batches made of them.

    `asked` counts the requests that are under way to endpoints elsewhere.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.batches: deque[list[Part]] = deque()
        self.asked = 0
        self.done = 0

    def drop_unwanted(self) -> None:
        """Forget the jobs that nobody waits for any more."""
        for job in self.jobs:
            job.expire()
        self.jobs[:] = [job for job in self.jobs if job.wanted]
