"""Lanes: each does one kind of work in one thread, a slice at a time of what callers wait for.

A lane measures how fast it is, for each kind of work. By that it makes slices that take about as
long as urgent work may be kept waiting, and refuses at once what can't be done in time: whoever is
refused can do without at once, and whoever is not gets an answer in time.
"""

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

URGENT_SLICE, SLICE = 0.25, 0.1
"""Seconds that a slice should take. Between slices, work that nobody waits for any more is dropped,
and urgent work goes before what is not: it waits for no longer than the second."""
FIRST_SLICE, LARGEST_SLICE = 16, 1024
"""Items of a slice while nothing is known of the speed, and at most."""
EACH = 64
"""What an item costs besides its size, in units of size: characters, where items are texts."""


@dataclass(eq=False)
class Job:
    """Items of one caller. Jobs of equal `kind` may share a `run`, which maps items to results."""

    kind: Hashable
    items: Sequence[Any]
    run: Callable[[list[Any]], Sequence[Any]]
    costs: list[int]
    deadline: float
    urgent: bool
    dropped: bool = False
    future: Future[list[Any]] = field(default_factory=Future)
    results: dict[int, Any] = field(default_factory=dict)
    places: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.places.extend(sorted(range(len(self.items)), key=self.costs.__getitem__))

    @property
    def wanted(self) -> bool:
        """Whether a caller still waits for the job."""
        return not (self.dropped or self.future.done())

    @property
    def left(self) -> int:
        """What its items cost that have not been run yet."""
        return sum(self.costs[place] for place in self.places)

    def expire(self) -> None:
        """Fail the job with a timeout if its deadline has passed."""
        if self.wanted and time.monotonic() >= self.deadline:
            self.future.set_exception(
                RequestError("the deadline passed before the work was done", sqlstate="PGR02")
            )

    def fail(self, error: Exception) -> None:
        """Hand over an error, if a caller still waits."""
        self.expire()
        if self.wanted:
            self.future.set_exception(error)

    @property
    def is_complete(self) -> bool:
        """Whether all results are there."""
        return len(self.results) == len(self.items)

    def finish(self) -> None:
        """Hand over the results once all are there, if a caller still waits for them."""
        if self.is_complete:
            self.expire()
            if self.wanted:
                self.future.set_result([self.results[place] for place in range(len(self.items))])


Part = list[tuple[Job, int]]
"""A slice: jobs of one kind, each with the place of an item."""


class Lane:
    """A bounded queue and the thread that empties it, in the order in which work came.

    Urgent jobs go before all others.
    """

    def __init__(self, name: str, *, capacity: int = 64) -> None:
        self.name = name
        self.capacity = capacity
        self.done = 0
        self._queues: tuple[list[Job], list[Job]] = ([], [])
        self._speeds: dict[Hashable, float | None] = {}
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=f"pgrerank-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of jobs that are not done."""
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

        `size` is what an item costs, by some measure that its time is proportional to; `timeout` is
        in seconds. Raises RequestError at once when the queue is full, or when what waits before
        it leaves too little time (53300), and when the timeout passes (PGR02). If the awaiting task
        is cancelled, what has not run yet is dropped.
        """
        costs = [EACH + size(item) for item in items]
        job = Job(kind, items, run, costs, time.monotonic() + timeout, urgent)
        if not items:
            return []
        with self._wake:
            self._refuse(job, timeout)
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
        for job in [job for queue in self._queues for job in queue]:
            job.fail(RequestError("the worker is stopping", sqlstate="57P01"))

    def _refuse(self, job: Job, timeout: float) -> None:
        """Refuse what can't be done in time. Where nothing waits, it is tried."""
        ahead = [other for other in self._queues[not job.urgent] if other.wanted and other.places]
        reason = None
        if self._closed or len(ahead) >= self.capacity:
            reason = f"{len(ahead)} requests wait in lane {self.name}"
        elif ahead and (needed := sum(map(self._seconds, [*ahead, job]))) > timeout:
            reason = (
                f"what waits in lane {self.name}, and this, take {needed:.2f} s,"
                f" and {timeout:.2f} s are left"
            )
        if reason is not None:
            raise RequestError(f"the worker is busy: {reason}", sqlstate="53300")

    def _seconds(self, job: Job) -> float:
        """What is left of a job should take so long; nothing, while the speed is not known."""
        return job.left / (self._speeds.get(job.kind) or math.inf)

    def _loop(self) -> None:
        while part := self._next_part():
            try:
                self._run(part)
            except Exception as error:
                self._recover(part, error)
            self._settle(part)

    def _next_part(self) -> Part:
        """Wait for work; the next slice of it, or nothing once the lane is closed."""
        with self._wake:
            while not self._closed:
                for queue in self._queues:
                    self._drop_unwanted(queue)
                    if queue:
                        return self._part_of(queue)
                self._wake.wait()
        return []

    def _drop_unwanted(self, queue: list[Job]) -> None:
        for job in queue:
            job.expire()
        queue[:] = [job for job in queue if job.wanted]

    def _part_of(self, queue: list[Job]) -> Part:
        """As much of the first job, and of those of its kind behind it, as a slice takes."""
        speed = self._speeds.get(queue[0].kind)
        room = (speed or math.inf) * (URGENT_SLICE if queue[0].urgent else SLICE)
        part: Part = []
        most = FIRST_SLICE if speed is None else LARGEST_SLICE
        for job in (job for job in queue if job.kind == queue[0].kind):
            while job.places and len(part) < most and (room > 0 or not part):
                place = job.places.popleft()
                room -= job.costs[place]
                part.append((job, place))
        return sorted(part, key=lambda one: one[0].costs[one[1]])

    def _run(self, part: Part) -> None:
        kind = part[0][0].kind
        begun = time.monotonic()
        outcome = part[0][0].run([job.items[place] for job, place in part])
        took = max(time.monotonic() - begun, 1e-6)
        for (job, place), result in zip(part, outcome, strict=True):
            job.results[place] = result
        if kind not in self._speeds:
            self._speeds[kind] = None  # the first run warms up, and tells nothing of the next
        else:
            speed = sum(job.costs[place] for job, place in part) / took
            self._speeds[kind] = (speed + (self._speeds[kind] or speed)) / 2

    def _recover(self, part: Part, error: Exception) -> None:
        """One caller's bad item must not fail the others that shared its slice."""
        by_job = _by_job(part)
        if len(by_job) == 1:
            log.warning("lane %s: %s: %s", self.name, type(error).__name__, error)
            part[0][0].fail(error)
            return
        for own in by_job.values():
            try:
                self._run(own)
            except Exception as own_error:
                self._recover(own, own_error)

    def _settle(self, part: Part) -> None:
        """Take jobs off the queue that are done or have failed."""
        for job in _by_job(part):
            if job.is_complete or job.future.done():
                self.done += 1  # before a caller can look
            job.finish()
        with self._wake:
            for queue in self._queues:
                self._drop_unwanted(queue)


def _by_job(part: Part) -> dict[Job, Part]:
    by_job: dict[Job, Part] = {}
    for job, place in part:
        by_job.setdefault(job, []).append((job, place))
    return by_job


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
