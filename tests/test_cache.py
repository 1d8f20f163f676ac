"""What was computed once for searches is found again, by what it was made of."""

from __future__ import annotations

import asyncio

import pytest

from pgrerank.errors import RequestError
from pgrerank.worker.cache import OVERHEAD, Cache
from tests.helpers.sources import Source
from tests.helpers.workers import asking, wait_for, worker

SEARCH = "SELECT id, score, cross_encoder_score FROM pgrerank.documents_search('bread of flour')"


class Counted:
    """Work that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, texts: list[tuple[str, ...]]) -> list[float]:
        self.asked += ["|".join(parts) for parts in texts]
        return [float(len("".join(parts))) for parts in texts]


def test_results_are_kept_by_all_that_they_depend_on():
    cache, work = Cache(100 * OVERHEAD, lambda _: 0), Counted()

    async def main():
        assert await cache.get("a", [("q", "x"), ("q", "yy"), ("q", "x")], work) == [2, 3, 2]
        assert await cache.get("a", [("q", "yy"), ("q", "zzz")], work) == [3, 4]
        assert await cache.get("b", [("q", "x")], work) == [2]
        assert await cache.get("a", [("qx", "")], work) == [2]
        assert await cache.get("a", [("\ud800", "x")], work) == [2]

    asyncio.run(main())
    assert work.asked == ["q|x", "q|yy", "q|zzz", "q|x", "qx|", "\ud800|x"]
    assert cache.hits == 2
    assert cache.saved > 0


def test_the_least_recently_used_go_first():
    cache, work = Cache(2 * OVERHEAD + 10, lambda _: 5), Counted()

    async def main():
        for text in ("x", "y", "x", "z", "x", "y"):
            await cache.get("a", [(text,)], work)

    asyncio.run(main())
    assert work.asked == ["x", "y", "z", "y"]


def test_without_room_everything_is_computed():
    cache, work = Cache(0, lambda _: 0), Counted()
    for _ in range(2):
        assert asyncio.run(cache.get("a", [("x",), ("y",)], work)) == [1, 1]
    assert work.asked == ["x", "y", "x", "y"]
    assert cache.hits == 0


def test_a_failure_is_not_kept():
    cache, work = Cache(1000, lambda _: 0), Counted()

    async def fail(_texts):
        raise RequestError("no", sqlstate="22023")

    with pytest.raises(RequestError):
        asyncio.run(cache.get("a", [("x",)], fail))
    assert asyncio.run(cache.get("a", [("x",)], work)) == [1]


def test_a_second_identical_search_runs_no_model(dsn, db, tiny_models, tmp_path):
    source = Source(db)
    source.models(**tiny_models)
    source.create(timeout="20 s")
    with worker(dsn, tmp_path, "--cache", "1"), asking(db) as ask:
        wait_for(db, "pending = 0")

        def status() -> dict[str, tuple[int, int]]:
            """By lane, requests that ran and results that were found."""
            return {row[0]: (int(row[1]), int(row[3])) for row in ask("SHOW status")}

        first = db.execute(SEARCH).fetchall()
        before = status()
        assert db.execute(SEARCH).fetchall() == first
        after = status()
        assert after["cross_encode"] == (before["cross_encode"][0], 3)
        assert after["encode"] == (before["encode"][0], 1)

        db.execute("UPDATE documents SET body = 'Bread of rye' WHERE id = 3")
        wait_for(db, "pending = 0")
        changed = {row[0]: row[2] for row in db.execute(SEARCH).fetchall()}
        assert status()["cross_encode"] == (before["cross_encode"][0] + 1, 3 + 2)
        scores = {row[0]: row[2] for row in first}
        assert {key for key in scores if scores[key] != changed[key]} == {3}
