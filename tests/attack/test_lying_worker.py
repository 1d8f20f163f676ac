"""A worker that lies: late, wrong, deep and huge answers cost a search no row, time or memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgrerank.wire.server import Rows, Session
from tests.helpers.searching import CLIENTS, use_client
from tests.helpers.wire_served import Served, as_worker

SEARCH = (
    "SELECT id, stage, degraded FROM pgrerank.documents_search('bread connection',"
    " timeout => '1 s', passages => 2)"
)
VECTOR = [0.1] * 32
LIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "null": lambda _: "null",
    "no JSON": lambda _: "{",
    "nothing": lambda _: "",
    "a list": lambda _: "[1]",
    "another's answer": lambda asked: json.dumps({"id": asked["id"] + 1, "scores": [9, 9, 9]}),
    "no members": lambda asked: json.dumps({"id": asked["id"]}),
    "wrong types": lambda asked: told(
        asked, embeddings="x", embedding=7, scores={"1": 2}, tokens=1
    ),
    "no numbers": lambda asked: told(asked, embedding=["NaN"] * 32, scores=["Infinity"] * 3),
    "too many": lambda asked: told(asked, embedding=VECTOR * 9, scores=[1] * 100),
    "others' keys": lambda asked: told(asked, keys=["4", "5"], scores={"4": 1, "5": 9}),
    "overflowing": lambda asked: f'{{"id": {asked["id"]}, "scores": [1e400, 1e400, 1e400]}}',
    "deep": lambda asked: f'{{"id": {asked["id"]}, "scores": {"[" * 50_000}{"]" * 50_000}}}',
    "huge": lambda asked: told(asked, scores=[0.5] * 200_000, embedding=[0.5] * 200_000),
    "SQL": lambda asked: told(asked, embedding="'); DROP TABLE documents; --", error="%s %I $$"),
}


def told(asked: dict[str, Any], **answer: Any) -> str:
    return json.dumps({"id": asked["id"], **answer})


class Liar(Served):
    """A worker that knows the password, and answers what `lie` makes of a request."""

    lie: Callable[[dict[str, Any]], str] = staticmethod(LIES["null"])
    late = 0.0
    asked = 0

    async def handle(self, text: str, _session: Session) -> Rows:
        if text.strip() == "PING":
            return Rows(("answer",), [('"PONG"',)], "SELECT 1")
        self.asked += 1
        await asyncio.sleep(self.late)
        return Rows(("answer",), [(self.lie(json.loads(text)),)], "SELECT 1")


@pytest.fixture(params=CLIENTS)
def client(db, request) -> str:
    """Which asks the worker."""
    use_client(db, request.param)
    return request.param


@pytest.fixture
def liar(source, client) -> Iterator[Liar]:
    with as_worker(Liar, source) as worker:
        yield worker


def peak(db: psycopg.Connection[Any]) -> int:
    """The most memory that the backend has had, in bytes; 0 where it can't be seen."""
    status = Path(f"/proc/{db.info.backend_pid}/status")
    if not status.exists():
        return 0
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def test_lies_degrade_a_search_and_add_nothing_to_it(db, liar, client):
    db.execute(SEARCH)
    before = peak(db)
    for name, lie in LIES.items():
        liar.lie, asked = staticmethod(lie), liar.asked
        began = time.monotonic()
        rows = db.execute(SEARCH).fetchall()
        assert time.monotonic() - began < 3, name
        assert liar.asked > asked, name
        assert {key for key, *_ in rows} <= {1, 2, 3}, name
        assert {degraded for *_, degraded in rows} == {True}, name
    assert peak(db) - before < {"native": 64, "dblink": 256}[client] * 2**20
    assert db.execute("SELECT count(*) FROM documents").fetchone() == (3,)


def test_a_late_answer_is_not_waited_for_nor_taken_for_the_next(db, liar):
    liar.late = 5
    liar.lie = staticmethod(lambda asked: told(asked, embedding=VECTOR))
    began = time.monotonic()
    rows = db.execute(SEARCH).fetchall()
    assert time.monotonic() - began < 1.5
    assert {row[1:] for row in rows} == {("lexical", True)}
    with pytest.raises(psycopg.Error) as error:
        db.execute(SEARCH.replace("passages", "strict => true, passages"))
    assert error.value.sqlstate == "PGR02"
