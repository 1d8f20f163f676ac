from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pgrerank.errors import RequestError
from pgrerank.models.steps import Input, Prepared, Whole
from pgrerank.worker.engine import PREPARING, Engine
from pgrerank.worker.speeds import FIRST_TOKENS

TOKENS = 2000
"""Of a character, so that few of them make a batch."""


@pytest.fixture
def engine():
    engine = Engine(capacity=3)
    yield engine
    engine.close()


class Gate:
    """Work that waits until it is let through, and remembers what it was given."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started = threading.Event()
        self.batches: list[list[str]] = []
        self.steps = Whole(self, size=lambda item: TOKENS * len(item) // 100)

    def __call__(self, items: list[str]) -> list[str]:
        self.started.set()
        self.batches.append(list(items))
        assert self.open.wait(10)
        if "bad" in items:
            raise ValueError("bad item")
        return [item.upper() for item in items]

    async def submit(self, engine: Engine, *items: str, lane: str = "encode", **options):
        return await engine.submit(lane, self.steps, items, **options)

    async def occupy(self, engine: Engine) -> asyncio.Task:
        task = asyncio.create_task(self.submit(engine, "first"))
        await asyncio.to_thread(self.started.wait, 10)
        return task


def test_callers_share_batches_and_get_their_own_results(engine):
    gate = Gate()

    async def main():
        first = await gate.occupy(engine)
        others = [asyncio.create_task(gate.submit(engine, f"b{i}", f"aaa{i}")) for i in range(3)]
        await asyncio.sleep(0.05)
        gate.open.set()
        assert await first == ["FIRST"]
        assert await asyncio.gather(*others) == [[f"B{i}", f"AAA{i}"] for i in range(3)]

    asyncio.run(main())
    assert gate.batches == [["first"], ["aaa0", "aaa1", "aaa2", "b0", "b1", "b2"]]


def test_a_full_queue_refuses_at_once(engine):
    gate = Gate()

    async def main():
        first = await gate.occupy(engine)
        waiting = [asyncio.create_task(gate.submit(engine, "x")) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match="busy: 3 requests wait") as refusal:
            await gate.submit(engine, "one too many")
        assert refusal.value.sqlstate == "53300"
        gate.open.set()
        await asyncio.gather(first, *waiting)

    asyncio.run(main())


def test_expired_and_cancelled_work_is_dropped(engine):
    gate = Gate()

    async def main():
        first = await gate.occupy(engine)
        expired = asyncio.create_task(gate.submit(engine, "expired", timeout=0.01))
        cancelled = asyncio.create_task(gate.submit(engine, "cancelled"))
        kept = asyncio.create_task(gate.submit(engine, "kept"))
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


def test_one_callers_bad_item_fails_that_caller_only(engine):
    gate = Gate()

    async def main():
        first = await gate.occupy(engine)
        bad = asyncio.create_task(gate.submit(engine, "bad"))
        good = asyncio.create_task(gate.submit(engine, "good"))
        await asyncio.sleep(0.05)
        gate.open.set()
        with pytest.raises(ValueError, match="bad item"):
            await bad
        assert await good == ["GOOD"]
        await first

    asyncio.run(main())


def test_urgent_work_goes_before_the_rest(engine):
    gate = Gate()

    async def main():
        first = await gate.occupy(engine)
        ingest = asyncio.create_task(gate.submit(engine, "document", lane="ingest"))
        await asyncio.sleep(0.05)
        search = asyncio.create_task(gate.submit(engine, "query"))
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(first, ingest, search)

    asyncio.run(main())
    assert gate.batches == [["first"], ["query"], ["document"]]


def test_many_items_run_in_batches_of_like_length(engine):
    gate = Gate()
    gate.open.set()
    items = ["x" * (1 + i % 7) for i in range(200)]
    assert asyncio.run(gate.submit(engine, *items)) == [item.upper() for item in items]
    assert len(gate.batches) > 2
    for batch in gate.batches[:2]:
        assert len(batch) * max(map(len, batch)) * TOKENS / 100 <= FIRST_TOKENS
    for batch in gate.batches[:2]:
        assert len(batch[0]) - len(batch[-1]) <= 2


class Steady(Gate):
    """Work that takes ten milliseconds an item."""

    def __init__(self) -> None:
        super().__init__()
        self.steps.size = lambda _: TOKENS

    def __call__(self, items: list[str]) -> list[str]:
        self.batches.append(list(items))
        time.sleep(0.01 * len(items))
        return [item.upper() for item in items]


def test_batches_take_as_long_as_urgent_work_may_wait(engine):
    work = Steady()
    asyncio.run(work.submit(engine, *["x"] * 60, lane="ingest"))
    assert [len(batch) for batch in work.batches[:2]] == [FIRST_TOKENS // TOKENS] * 2
    assert 3 <= max(len(batch) for batch in work.batches) <= 6


def test_what_can_not_be_prepared_fails_its_caller_only(engine):
    gate = Gate()
    gate.open.set()

    def size(item: str) -> int:
        if item == "bad":
            raise ValueError("bad text")
        return 1

    gate.steps.size = size

    async def main():
        with pytest.raises(ValueError, match="bad text"):
            await gate.submit(engine, "bad")
        assert await gate.submit(engine, "good") == ["GOOD"]

    asyncio.run(main())


def test_a_device_gets_as_many_batches_at_once_as_it_wants(engine):
    together = threading.Barrier(3)

    def call(items: list[str]) -> list[str]:
        together.wait(10)
        return items

    steps = Whole(call, size=lambda _: FIRST_TOKENS, at_once=3)

    async def main():
        jobs = [engine.submit(lane, steps, "x") for lane in ("ingest", "encode", "cross_encode")]
        assert await asyncio.gather(*jobs) == [["x"]] * 3

    asyncio.run(main())


def test_what_can_not_be_done_in_time_is_refused_at_once_and_the_rest_is_done(engine):
    work = Steady()

    async def main():
        await work.submit(engine, *["x"] * 40)  # the engine knows its speed
        begun = time.monotonic()
        first = asyncio.create_task(work.submit(engine, *["x"] * 50, timeout=5))
        await asyncio.sleep(0.05)
        with pytest.raises(RequestError, match="busy: what waits in lane encode") as refusal:
            await work.submit(engine, *["x"] * 20, timeout=0.4)
        assert refusal.value.sqlstate == "53300"
        assert time.monotonic() - begun < 0.2
        assert len(await work.submit(engine, *["x"] * 20, timeout=5)) == 20
        assert len(await first) == 50

    asyncio.run(main())


def test_an_engine_that_nothing_waits_for_tries(engine):
    work = Steady()

    async def main():
        await work.submit(engine, *["x"] * 40)
        with pytest.raises(RequestError, match="deadline passed"):
            await work.submit(engine, *["x"] * 40, timeout=0.1)

    asyncio.run(main())


def test_work_is_done_in_the_order_in_which_it_came(engine):
    gate, order = Gate(), []

    async def wait_for(name: str) -> None:
        await gate.submit(engine, *[name] * 100)
        order.append(name)

    async def main():
        first = await gate.occupy(engine)
        tasks = [asyncio.create_task(wait_for(name)) for name in "abc"]
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(main())
    assert order == ["a", "b", "c"]


def test_a_closed_engine_fails_what_waits():
    gate, engine = Gate(), Engine()

    async def main():
        first = await gate.occupy(engine)
        waiting = asyncio.create_task(gate.submit(engine, "x"))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.05)
        gate.open.set()
        await closing
        assert await first == ["FIRST"]
        with pytest.raises(RequestError, match="stopping"):
            await waiting

    asyncio.run(main())


class Slow:
    """Work that takes no time, once it is let through to be prepared."""

    batch_tokens, at_once = 1000, 1

    def __init__(self) -> None:
        self.open = threading.Event()
        self.prepared: list[str] = []

    def prepare(self, items):
        assert self.open.wait(10)
        self.prepared += items
        return [Prepared([Input(item, 100)]) for item in items]

    def run(self, inputs):
        time.sleep(0.001 * len(inputs))
        return [one.source.upper() for one in inputs]

    def join(self, _items, outputs):
        return [output for [output] in outputs]


def test_what_is_being_prepared_counts_as_waiting(engine):
    """Or a crowd is let in all at once, and all of it is late."""
    slow = Slow()

    async def main():
        slow.open.set()
        for _ in range(3):
            await engine.submit("encode", slow, ["x"] * 100)  # the engine knows speed and size
        slow.open.clear()
        first = [
            asyncio.create_task(engine.submit("encode", slow, [name] * 100, timeout=1.5))
            for name in "ab"
        ]
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        with pytest.raises(RequestError, match="busy: what waits in lane encode") as refusal:
            await engine.submit("encode", slow, ["c"] * 100, timeout=0.2)
        assert refusal.value.sqlstate == "53300"
        assert time.monotonic() - begun < 0.15
        slow.open.set()
        assert await asyncio.gather(*first) == [["A"] * 100, ["B"] * 100]
        assert "c" not in slow.prepared

    asyncio.run(main())


def test_what_is_too_late_before_it_is_prepared_is_not_prepared():
    engine, slow = Engine(), Slow()

    async def main():
        waiting = [
            asyncio.create_task(engine.submit("encode", slow, [str(number)]))
            for number in range(PREPARING)
        ]
        await asyncio.sleep(0.01)
        late = asyncio.create_task(engine.submit("encode", slow, ["late"], timeout=0.05))
        await asyncio.sleep(0.1)
        slow.open.set()
        expected = [[str(number)] for number in range(PREPARING)]
        assert await asyncio.gather(*waiting) == expected
        with pytest.raises(RequestError, match="deadline passed"):
            await late
        assert "late" not in slow.prepared

    asyncio.run(main())
    engine.close()


def test_what_nobody_waits_for_is_not_tokenised_to_the_end(engine):
    """Half a second of tokenising is cut short by a deadline, and by the end of the engine."""
    prepared = []

    class Slow(Whole):
        def prepare(self, items):
            time.sleep(0.01 * len(items) / 128)
            prepared.extend(items)
            return super().prepare(items)

    async def main():
        items = ["text"] * 128 * 50
        with pytest.raises(RequestError, match="deadline"):
            await engine.submit("encode", Slow(list), items, timeout=0.05)
        task = asyncio.create_task(engine.submit("ingest", Slow(list), items))
        await asyncio.sleep(0.05)
        engine.close()
        with pytest.raises(RequestError, match="stopping"):
            await task
        await asyncio.sleep(0.1)

    asyncio.run(main())
    before = len(prepared)
    time.sleep(0.1)
    assert before == len(prepared) < 128 * 60
