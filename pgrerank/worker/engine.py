"""The engine runs models for all callers: batches of whatever waits, the most urgent first.

Items are prepared (tokenised, cut) in threads beside those that run the models, so that a device
does not wait for it. The engine measures how fast each kind of work is. By that it makes batches
that take no longer than urgent work may be kept waiting, and refuses at once what can't be done in
time: whoever is refused can do without at once, and whoever is not gets an answer in time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pgrerank.errors import RequestError
from pgrerank.models.steps import Remote, Steps, batches
from pgrerank.worker.jobs import Job, Lane, Part
from pgrerank.worker.speeds import Speeds

log = logging.getLogger(__name__)

LANES = ("encode", "maxsim", "cross_encode", "ingest")
"""What work is for, the most urgent first: each lane's goes before that of all behind it."""
PREPARING = max(2, min(8, os.cpu_count() or 1))
"""Threads of a lane that prepare, first come first served: were all prepared at once, each would
take as long as all, and be too late."""
MARGIN = 1.2
"""How much more time a job should have than it takes by the speed that is known: work on one that
comes too late is lost, and under load each that is accepted is close to that."""


class Engine:
    """Lanes of jobs, and the threads that run them."""

    def __init__(
        self,
        *,
        capacity: int = 64,
        on_batch: Callable[[str, int, int, float], None] = lambda *_: None,
    ) -> None:
        """`on_batch` is told of each batch: its lane, items, tokens, and the seconds that it took;
        in a thread that runs models.
        """
        self.lanes = {name: Lane() for name in LANES}
        self._capacity = capacity
        self._on_batch = on_batch
        self._speeds = Speeds()
        self._wake = threading.Condition()
        self._closed = False
        self._runners: list[threading.Thread] = []
        self._preparing = {
            name: ThreadPoolExecutor(PREPARING, f"pgrerank-prepare-{name}") for name in LANES
        }

    async def submit(
        self, lane: str, steps: Steps | Remote, items: Sequence[Any], *, timeout: float = math.inf
    ) -> list[Any]:
        """Results of `steps` for `items`, in their order; `timeout` is in seconds. What is done
        elsewhere goes there at once.

        Raises RequestError at once when the lane is full, or when what waits before it leaves too
        little time (53300), and when the timeout passes (PGR02); and what the model raises. If the
        awaiting task is cancelled, what has not run yet is dropped.
        """
        if not items:
            return []
        if isinstance(steps, Remote):
            return await self._ask(lane, steps, items, timeout)
        job = Job(lane, steps, items, time.monotonic() + timeout)
        job.tokens = self._speeds.size(steps, len(items))
        try:
            with self._wake:
                self._refuse(lane, job)
                self.lanes[lane].jobs.append(job)
            await self._prepare(lane, job)
            await asyncio.wrap_future(job.future)
            return await asyncio.to_thread(job.join)
        finally:
            with self._wake:
                job.dropped = True
                self.lanes[lane].drop_unwanted()
                self.lanes[lane].done += 1

    async def _ask(
        self, lane: str, remote: Remote, items: Sequence[Any], timeout: float
    ) -> list[Any]:
        own = self.lanes[lane]
        if self._closed or own.asked >= self._capacity:
            raise RequestError(
                f"the worker is busy: {own.asked} requests to endpoints wait in lane {lane}",
                sqlstate="53300",
            )
        own.asked += 1
        try:
            return await remote.ask(items, timeout)
        finally:
            own.asked -= 1
            own.done += 1

    async def _prepare(self, lane: str, job: Job) -> None:
        """Prepare a job, and have it wait to be run; it may be more than it seemed to be."""
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        parts = await loop.run_in_executor(self._preparing[lane], job.prepare)
        with self._wake:
            if job.wanted:
                job.wait(parts)
                took = time.monotonic() - begun
                self._speeds.prepared(job.steps, len(job.items), job.tokens, took)
                self._refuse(lane, job)
                self._start_runners(job.steps.at_once)
                self._wake.notify_all()

    def close(self) -> None:
        """Finish the batches that run, drop the rest, end the threads."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for runner in self._runners:
            runner.join()
        for pool in self._preparing.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for lane in self.lanes.values():
            for job in lane.jobs:
                job.fail(RequestError("the worker is stopping", sqlstate="57P01"))

    def waiting(self, lane: str) -> int:
        """The number of jobs that are not done."""
        return len(self.lanes[lane].jobs) + self.lanes[lane].asked

    def seconds(self, steps: Steps, tokens: float) -> float:
        """How long so many tokens take; nothing, while the speed is not known."""
        return self._speeds.seconds(steps, tokens)

    def _refuse(self, lane: str, job: Job) -> None:
        """Refuse what can't be done in time. Where nothing is before it, it is tried."""
        own = self.lanes[lane].jobs
        before = own[: own.index(job)] if job in own else own
        waiting = [other for other in before if not other.has_begun]
        urgent = [o for name in LANES[: LANES.index(lane)] for o in self.lanes[name].jobs]
        ahead = [other for other in (*urgent, *before) if other.wanted]
        left = job.deadline - time.monotonic()
        reason = None
        if self._closed or len(waiting) >= self._capacity:
            reason = f"{len(waiting)} requests wait in lane {lane}"
        elif ahead and (needed := self._needed(ahead, job)) > left:
            reason = (
                f"what waits in lane {lane}, and this, take {needed:.2f} s,"
                f" and {left:.2f} s are left"
            )
        if reason is not None:
            raise RequestError(f"the worker is busy: {reason}", sqlstate="53300")

    def _needed(self, ahead: Sequence[Job], job: Job) -> float:
        """Seconds after which a job should be done, on the safe side."""
        work = sum(self._speeds.seconds(one.steps, one.tokens) for one in (*ahead, job))
        return MARGIN * work + self._speeds.delay(job.steps)

    def _start_runners(self, wanted: int) -> None:
        while len(self._runners) < wanted:
            name = f"pgrerank-run-{len(self._runners)}"
            self._runners.append(threading.Thread(target=self._loop, name=name, daemon=True))
            self._runners[-1].start()

    def _loop(self) -> None:
        while batch := self._next_batch():
            self._run(batch)
            self._settle(batch)

    def _next_batch(self) -> list[Part]:
        """Wait for work; the next batch of it, or nothing once the engine is closed."""
        with self._wake:
            while not self._closed:
                for lane in self.lanes.values():
                    if batch := self._batch_of(lane):
                        return batch
                self._wake.wait()
        return []

    def _batch_of(self, lane: Lane) -> list[Part]:
        lane.drop_unwanted()
        if not lane.batches:
            lane.batches.extend(self._slice_of(lane))
        while lane.batches:
            if batch := [part for part in lane.batches.popleft() if part.job.wanted]:
                return batch
        return []

    def _slice_of(self, lane: Lane) -> list[list[Part]]:
        """Batches of the first job that waits and of those of its kind behind it."""
        waiting = [job for job in lane.jobs if job.waiting]
        if not waiting:
            return []
        steps = waiting[0].steps
        room = self._speeds.slice(steps)
        parts: list[Part] = []
        for job in (job for job in waiting if job.steps is steps):
            while job.waiting and (room > 0 or not parts):
                job.has_begun = True
                part = job.waiting.popleft()
                room -= part.input.tokens
                parts.append(part)
        most = self._speeds.batch(steps)
        made = list(batches(parts, lambda part: part.input.tokens, most))
        if len(made) > 1 and any(job.waiting for job in waiting if job.steps is steps):
            for part in made.pop():  # which is no whole batch, and may become one with what follows
                part.job.waiting.appendleft(part)
        return made

    def _run(self, batch: list[Part]) -> None:
        """Run a batch. One caller's bad item must not fail the others that share it."""
        begun = time.monotonic()
        try:
            steps = batch[0].job.steps
            outputs = steps.run([part.input for part in batch])
            done = list(zip(batch, outputs, strict=True))
        except Exception as error:
            self._recover(batch, error)
            return
        took = time.monotonic() - begun
        tokens = sum(part.input.tokens for part in batch)
        with self._wake:
            for part, output in done:
                part.job.outputs[part.item][part.place] = output
                part.job.missing -= 1
                part.job.tokens -= part.input.tokens
            self._speeds.ran(steps, tokens, took)
        self._on_batch(batch[0].job.lane, len(batch), tokens, took)

    def _recover(self, batch: list[Part], error: Exception) -> None:
        by_job: dict[Job, list[Part]] = {}
        for part in batch:
            by_job.setdefault(part.job, []).append(part)
        if len(by_job) == 1:
            log.warning("%s: %s", type(error).__name__, error)
            batch[0].job.fail(error)
            return
        for own in by_job.values():
            self._run(own)

    def _settle(self, batch: list[Part]) -> None:
        """Let callers go on whose jobs are done."""
        with self._wake:
            for job in {part.job: None for part in batch}:
                job.finish()
            for lane in self.lanes.values():
                lane.drop_unwanted()
