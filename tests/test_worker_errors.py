"""What a search makes of a worker that answers with an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgrerank.wire.server import RequestError, Rows, Session
from tests.helpers.wire_served import Served

SEARCH = "SELECT stage, degraded, reason FROM pgrerank.documents_search('bread'"


class Refusing(Served):
    """A worker that refuses whatever it is asked."""

    sqlstate = "22023"

    def __init__(self, **options: Any) -> None:
        self.sessions: list[Session] = []
        super().__init__(**options)

    async def handle(self, text: str, session: Session) -> Rows:
        self.sessions.append(session)
        if text == "PING":
            return Rows(("answer",), [('{"pong": true}',)], "SELECT 1")
        raise RequestError("it can't be done", sqlstate=self.sqlstate)


@pytest.fixture
def refusing(db, source) -> Iterator[Any]:
    worker = Refusing(user="pgrerank", password="secret")
    db.execute("SELECT pgrerank.set_worker('127.0.0.1', %s, 'secret')", (worker.port,))
    source.create()
    source.encode_by_hand()
    yield worker
    db.execute("SELECT pgrerank._disconnect()")
    worker.close()


@pytest.mark.parametrize(
    ("answered", "raised"),
    [
        ("PGR02", "PGR02"),  # the deadline, seen by the worker first
        ("22023", "PGR03"),
        ("53300", "PGR03"),
        ("XX000", "PGR03"),
        ("42501", "PGR03"),
    ],
)
def test_it_degrades_or_if_strict_says_which(db, refusing, answered, raised):
    refusing.sqlstate = answered
    rows = db.execute(SEARCH + ")").fetchall()
    assert {row[:2] for row in rows} == {("lexical", True)}
    assert "it can't be done" in rows[0][2]
    with pytest.raises(psycopg.Error, match="it can't be done") as error:
        db.execute(SEARCH + ", strict => true)")
    assert error.value.sqlstate == raised


def test_a_connection_outlives_a_refusal_of_the_only_worker(db, refusing):
    refusing.sqlstate = "53300"
    for _ in range(3):
        with pytest.raises(psycopg.Error, match="it can't be done"):
            db.execute(SEARCH + ", strict => true)")
    db.execute("SELECT pgrerank.ping_worker()")
    assert len(refusing.sessions) == 4
    assert len({id(session) for session in refusing.sessions}) == 1
    refusing.sqlstate = "22023"
    for _ in range(2):
        with pytest.raises(psycopg.Error, match="it can't be done"):
            db.execute(SEARCH + ", strict => true)")
    assert len({id(session) for session in refusing.sessions}) == 2
