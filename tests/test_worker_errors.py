"""What a search makes of a worker that answers with an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgrerank.wire.server import RequestError, Rows, Session
from tests.helpers.searching import CLIENTS, use_client
from tests.helpers.wire_served import Served, as_worker

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


@pytest.fixture(params=CLIENTS)
def refusing(db, source, request) -> Iterator[Refusing]:
    use_client(db, request.param)
    with as_worker(Refusing, source) as worker:
        yield worker


@pytest.mark.parametrize(
    ("answered", "raised", "why"),
    [
        ("PGR02", "PGR02", "it can't be done"),  # the deadline, seen by the worker first
        ("22023", "PGR03", "it can't be done"),
        ("53300", "PGR03", "it can't be done"),
        ("XX000", "PGR03", "it can't be done"),
        ("42501", "PGR03", "it can't be done"),
        ("08006", "PGR01", "connection to the worker broke"),  # as if the connection had broken
    ],
)
def test_it_degrades_or_if_strict_says_which(db, refusing, answered, raised, why):
    refusing.sqlstate = answered
    rows = db.execute(SEARCH + ")").fetchall()
    assert {row[:2] for row in rows} == {("lexical", True)}
    assert why in rows[0][2]
    with pytest.raises(psycopg.Error, match=why) as error:
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
