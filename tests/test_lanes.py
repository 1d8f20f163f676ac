from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pgrerank.errors import RequestError
from pgrerank.worker.lanes import FIRST_SLICE, Lane


@pytest.fixture
def lane():
    lane = Lane("test", capacity=3)
    yield lane
    lane.close()


class Gate:
    """Work that waits until it is let through, and remembers what it was given."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[str]] = []

    def __call__(self, items: list[str]) -> list[str]:
        self.started.set()
        self.batches.append(list(items))
        assert self.open.wait(10)
        if "bad" in items:
            raise ValueError("bad item")
        return [item.upper() for item in items]

    async def submit(self, lane: Lane, *items: str, **options):
        return await lane.submit("kind", items, self, **options)

    async def occupy(self, lane: Lane) -> asyncio.Task:
        task = asyncio.create_task(self.submit(lane, "first"))
        await asyncio.to_thread(self.started.wait, 10)
        return task


def test_callers_share_batches_and_get_their_own_results(lane):
    gate = Gate()

    async def main():
        first = await gate.occupy(lane)
        others = [asyncio.create_task(gate.submit(lane, f"b{i}", f"aaa{i}")) for i in range(3)]
        await asyncio.sleep(0.05)
        gate.open.set()
        assert await first == ["FIRST"]
        assert await asyncio.gather(*others) == [[f"B{i}", f"AAA{i}"] for i in range(3)]

    asyncio.run(main())
    assert gate.batches == [["first"], ["b0", "b1", "b2", "aaa0", "aaa1", "aaa2"]]


def test_a_full_queue_refuses_at_once(lane):
    gate = Gate()

    async def main():
        first = await gate.occupy(lane)
        waiting = [asyncio.create_task(gate.submit(lane, "x")) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match="busy: 3 requests wait") as refusal:
            await gate.submit(lane, "one too many")
        assert refusal.value.sqlstate == "53300"
        gate.open.set()
        await asyncio.gather(first, *waiting)

    asyncio.run(main())


def test_expired_and_cancelled_work_is_dropped(lane):
    gate = Gate()

    async def main():
        first = await gate.occupy(lane)
        expired = asyncio.create_task(gate.submit(lane, "expired", timeout=0.01))
        cancelled = asyncio.create_task(gate.submit(lane, "cancelled"))
        kept = asyncio.create_task(gate.submit(lane, "kept"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.sleep(0.05)
        gate.open.set()
        with pytest.raises(RequestError, match="deadline passed") as error:
            await expired
        assert error.value.sqlstate == "PGR02"
        assert await kept == ["KEPT"]
        await first

    asyncio.run(main())
    assert gate.batches == [["first"], ["kept"]]


def test_one_callers_bad_item_fails_that_caller_only(lane):
    gate = Gate()

    async def main():
        first = await gate.occupy(lane)
        bad = asyncio.create_task(gate.submit(lane, "bad"))
        good = asyncio.create_task(gate.submit(lane, "good"))
        await asyncio.sleep(0.05)
        gate.open.set()
        with pytest.raises(ValueError, match="bad item"):
            await bad
        assert await good == ["GOOD"]
        await first

    asyncio.run(main())


def test_urgent_work_goes_before_the_rest(lane):
    gate = Gate()

    async def main():
        first = await gate.occupy(lane)
        ingest = asyncio.create_task(gate.submit(lane, "document", urgent=False))
        await asyncio.sleep(0.05)
        search = asyncio.create_task(gate.submit(lane, "query"))
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(first, ingest, search)

    asyncio.run(main())
    assert gate.batches == [["first"], ["query"], ["document"]]


def test_many_items_run_in_slices_of_like_length(lane):
    gate = Gate()
    gate.open.set()
    items = ["x" * (1 + i % 7) for i in range(2 * FIRST_SLICE)]
    assert asyncio.run(gate.submit(lane, *items)) == [item.upper() for item in items]
    assert [len(batch) for batch in gate.batches] == [FIRST_SLICE] * 2
    lengths = [len(item) for batch in gate.batches for item in batch]
    assert lengths == sorted(lengths)


class Steady(Gate):
    """Work that takes ten milliseconds an item."""

    def __call__(self, items: list[str]) -> list[str]:
        self.batches.append(list(items))
        time.sleep(0.01 * len(items))
        return [item.upper() for item in items]


def test_slices_take_as_long_as_urgent_work_may_wait(lane):
    work = Steady()
    asyncio.run(work.submit(lane, *["x"] * 100, urgent=False))
    assert [len(batch) for batch in work.batches[:2]] == [FIRST_SLICE] * 2
    assert all(5 <= len(batch) <= 11 for batch in work.batches[2:-1])


def test_what_can_not_be_done_in_time_is_refused_at_once_and_the_rest_is_done(lane):
    work = Steady()

    async def main():
        await work.submit(lane, *["x"] * 40)  # the lane knows its speed
        begun = time.monotonic()
        first = asyncio.create_task(work.submit(lane, *["x"] * 50, timeout=5))
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match="busy: what waits in lane test") as refusal:
            await work.submit(lane, *["x"] * 20, timeout=0.4)
        assert refusal.value.sqlstate == "53300"
        assert time.monotonic() - begun < 0.2
        assert len(await work.submit(lane, *["x"] * 20, timeout=5)) == 20
        assert len(await first) == 50

    asyncio.run(main())


def test_a_lane_that_nothing_waits_for_tries(lane):
    work = Steady()

    async def main():
        await work.submit(lane, *["x"] * 40)
        with pytest.raises(RequestError, match="deadline passed"):
            await work.submit(lane, *["x"] * 40, timeout=0.1)

    asyncio.run(main())


def test_work_is_done_in_the_order_in_which_it_came(lane):
    gate, order = Gate(), []

    async def wait_for(name: str) -> None:
        await gate.submit(lane, *[name] * (2 * FIRST_SLICE))
        order.append(name)

    async def main():
        first = await gate.occupy(lane)
        tasks = [asyncio.create_task(wait_for(name)) for name in "abc"]
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(main())
    assert order == ["a", "b", "c"]


def test_a_closed_lane_fails_what_waits():
    gate, lane = Gate(), Lane("closing")

    async def main():
        first = await gate.occupy(lane)
        waiting = asyncio.create_task(gate.submit(lane, "x"))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(asyncio.to_thread(lane.close))
        await asyncio.sleep(0.05)
        gate.open.set()
        await closing
        assert await first == ["FIRST"]
        with pytest.raises(RequestError, match="stopping"):
            await waiting

    asyncio.run(main())
