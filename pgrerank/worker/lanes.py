"""Lanes: each does one kind of work in one thread and batches what callers ask at the same time."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pgrerank.errors import RequestError

log = logging.getLogger(__name__)

SLICE = 16
"""Items that a model is given at once. Between slices, work that nobody waits for is dropped, and
urgent work goes before the rest of what is not."""


@dataclass(eq=False)
class Job:
    """Items of one caller. Jobs of equal `kind` may share a `run`, which maps items to results."""

    kind: Hashable
    items: Sequence[Any]
    run: Callable[[list[Any]], Sequence[Any]]
    size: Callable[[Any], int]
    deadline: float
    urgent: bool
    dropped: bool = False
    future: Future[list[Any]] = field(default_factory=Future)
    results: dict[int, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether a caller still waits for the job."""
        return not (self.dropped or self.future.done())

    @property
    def places(self) -> list[int]:
        """The places of the items that have no result yet."""
        return [place for place in range(len(self.items)) if place not in self.results]

    def expire(self) -> None:
        """Fail the job with a timeout if its deadline has passed."""
        if self.wanted and time.monotonic() >= self.deadline:
            self.future.set_exception(
                RequestError("the deadline passed before the work was done", sqlstate="PGR02")
            )

    def finish(self) -> None:
        """Hand over the results, if a caller still waits for them."""
        self.expire()
        if self.wanted:
            self.future.set_result([self.results[place] for place in range(len(self.items))])


class Lane:
    """A bounded queue and the thread that empties it. Urgent jobs go before all others."""

    def __init__(self, name: str, *, capacity: int = 64) -> None:
        self.name = name
        self.capacity = capacity
        self.done = 0
        self._queues: tuple[deque[Job], deque[Job]] = (deque(), deque())
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=f"pgrerank-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of jobs in the queue."""
        return sum(map(len, self._queues))

    async def submit(
        self,
        kind: Hashable,
        items: Sequence[Any],
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        size: Callable[[Any], int] = len,
        timeout: float = math.inf,
        urgent: bool = True,
    ) -> list[Any]:
        """Results of `run` for `items`, in their order.

        `size` orders items so that those of like length share a slice; `timeout` is in seconds.
        Raises RequestError at once when the queue is full (53300), and when the timeout passes
        (PGR02). If the awaiting task is cancelled, what has not run yet is dropped.
        """
        job = Job(kind, items, run, size, time.monotonic() + timeout, urgent)
        with self._wake:
            if self._closed or len(self._queues[not urgent]) >= self.capacity:
                raise RequestError(
                    f"the worker is busy: {self.capacity} requests wait in lane {self.name}",
                    sqlstate="53300",
                )
            self._queues[not urgent].append(job)
            self._wake.notify()
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            job.dropped = True

    def close(self) -> None:
        """Finish the slice that runs, drop the rest, end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while (jobs := self._next_batch()) is not None:
            try:
                self._run(jobs)
            except Exception as error:
                self._recover(jobs, error)

    def _next_batch(self) -> list[Job] | None:
        with self._wake:
            while not self._closed and not self.waiting:
                self._wake.wait()
            if self._closed:
                return None
            queue = next(queue for queue in self._queues if queue)
            first = queue.popleft()
            batch = [first, *(job for job in queue if job.kind == first.kind)]
            for job in batch[1:]:
                queue.remove(job)
            return batch

    def _run(self, jobs: list[Job]) -> None:
        """Run a batch slice by slice; what urgent work interrupts goes back to where it was."""
        work = [(job, place) for job in jobs for place in job.places]
        work.sort(key=lambda item: item[0].size(item[0].items[item[1]]))
        for start in range(0, len(work), SLICE):
            if not jobs[0].urgent and self._queues[0]:
                self._put_back(jobs)
                return
            self._run_slice(jobs, work[start : start + SLICE])
        for job in jobs:
            job.finish()
        self.done += len(jobs)

    def _run_slice(self, jobs: list[Job], part: list[tuple[Job, int]]) -> None:
        for job in jobs:
            job.expire()
        wanted = [(job, place) for job, place in part if job.wanted]
        if wanted and not self._closed:
            outcome = jobs[0].run([job.items[place] for job, place in wanted])
            for (job, place), result in zip(wanted, outcome, strict=True):
                job.results[place] = result

    def _put_back(self, jobs: list[Job]) -> None:
        with self._wake:
            self._queues[1].extendleft(job for job in reversed(jobs) if job.wanted)

    def _recover(self, jobs: list[Job], error: Exception) -> None:
        """One caller's bad item must not fail the others that shared its batch."""
        if len(jobs) == 1:
            log.warning("lane %s: %s: %s", self.name, type(error).__name__, error)
            jobs[0].expire()
            if jobs[0].wanted:
                jobs[0].future.set_exception(error)
            self.done += 1
            return
        for job in jobs:
            try:
                self._run([job])
            except Exception as own:
                self._recover([job], own)


class Lanes(NamedTuple):
    """The lanes of a worker."""

    encode: Lane
    maxsim: Lane
    cross_encode: Lane

    @classmethod
    def start(cls, *, capacity: int = 64) -> Lanes:
        """Start all lanes, each for so many waiting requests."""
        return cls(*(Lane(name, capacity=capacity) for name in cls._fields))

    def close(self) -> None:
        """End all lanes."""
        for lane in self:
            lane.close()
