"""The native client against workers gone bad: it waits for nothing, and keeps nothing."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.attack.test_lying_worker import Liar, peak, told
from tests.helpers.certificates import certificate
from tests.helpers.hostile import DEEDS, PASSWORD, PHASES, HostileWorker, hostile_worker
from tests.helpers.searching import use_client
from tests.helpers.wire_served import serving

PING = "SELECT pgrerank.ping_worker(%s)"
DEADLINE = 0.1


@pytest.fixture(scope="module")
def native_dsn(make_database, pgrerank_template) -> str:
    return make_database(pgrerank_template)


@pytest.fixture
def native(native_dsn) -> Iterator[psycopg.Connection[Any]]:
    """A new session, whose worker is asked natively."""
    with psycopg.connect(native_dsn, autocommit=True) as db:
        use_client(db, "native")
        yield db


@pytest.fixture
def hostile(native) -> Iterator[HostileWorker]:
    with hostile_worker() as worker:
        set_worker(native, worker.port)
        yield worker
        native.execute("SELECT pgrerank._disconnect()")


def set_worker(db: psycopg.Connection[Any], port: int, /, **options: str) -> None:
    db.execute(
        "SELECT pgrerank.set_worker('127.0.0.1', %s, %s, %s)",
        (port, PASSWORD, Jsonb(options)),
    )


def sqlstate(db: psycopg.Connection[Any], timeout: float = DEADLINE) -> str | None:
    """What a ping ends with; None if it is answered. It is never late."""
    started = time.monotonic()
    try:
        db.execute(PING, (f"{timeout} s",))
        ended = None
    except psycopg.Error as error:
        ended = error.sqlstate
    assert time.monotonic() - started < timeout + 0.5  # under load; the benchmark has the bar
    return ended


@pytest.mark.parametrize("phase", PHASES)
def test_nothing_that_a_worker_does_takes_long_or_much(native, hostile, phase):
    hostile.phase = "none"
    assert sqlstate(native, 5) is None
    before = peak(native)
    for name, deed in DEEDS.items():
        native.execute("SELECT pgrerank._disconnect()")
        hostile.phase, hostile.deed = phase, deed
        ended = sqlstate(native)
        assert ended in ("PGR01", "PGR02", "PGR03") or name == "the largest answer", name
    assert peak(native) - before < 64 * 2**20
    hostile.phase = "none"
    assert sqlstate(native, 5) is None


def test_a_session_can_be_cancelled_in_each_phase(native, hostile):
    native.execute("SET statement_timeout = '50ms'")
    for phase in PHASES:
        hostile.phase = phase
        assert sqlstate(native, 0.5) == "57014", phase
    native.execute("RESET statement_timeout")
    hostile.phase = "none"
    assert sqlstate(native, 5) is None


@pytest.mark.parametrize(
    ("phase", "deed", "why"),
    [
        ("connect", "admitting", "does not prove that it knows the password"),
        ("challenge", "admitting", "does not prove that it knows the password"),
        ("challenge", "hastening", "SCRAM-SHA-256 is malformed"),
        ("proof", "admitting", "does not prove that it knows the password"),
        ("proof", "forging", "does not prove that it knows the password"),
    ],
)
def test_who_does_not_know_the_password_is_refused(native, hostile, phase, deed, why):
    hostile.phase, hostile.deed = phase, DEEDS[deed]
    with pytest.raises(psycopg.Error, match=f"no worker can be reached: .*{why}"):
        native.execute(PING, ("1 s",))


def test_a_refusal_is_told(native):
    with serving(user="pgrerank", password=PASSWORD) as served:
        native.execute("SELECT pgrerank.set_worker('127.0.0.1', %s, 'wrong')", (served.port,))
        with pytest.raises(psycopg.Error, match="it refused: password authentication failed"):
            native.execute(PING, ("1 s",))


def test_a_worker_with_tls_says_what_it_wants(native, tmp_path):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(tmp_path))
    with serving(user="pgrerank", password=PASSWORD, ssl=context, require_ssl=True) as served:
        set_worker(native, served.port)
        with pytest.raises(psycopg.Error, match="TLS only: connect with sslmode=require"):
            native.execute(PING, ("1 s",))


def ask(db: psycopg.Connection[Any], request: str = "{}", texts: int = 1) -> Any:
    return db.execute(
        "SELECT pgrerank._ask_worker(%s, clock_timestamp() + interval '5 s', %s)", (request, texts)
    ).fetchone()[0]


@pytest.fixture
def liar(native) -> Iterator[Liar]:
    worker = Liar(user="pgrerank", password=PASSWORD)
    set_worker(native, worker.port)
    yield worker
    native.execute("SELECT pgrerank._disconnect()")
    worker.close()


def test_an_old_connection_that_has_died_is_replaced(native, liar):
    liar.lie = told
    former = Liar(user="pgrerank", password=PASSWORD)
    former.lie = told
    set_worker(native, former.port)
    ask(native)
    set_worker(native, liar.port)
    former.close()
    assert ask(native)["id"] > 0
    assert (former.asked, liar.asked) == (1, 1)


def test_requests_and_answers_may_be_large_within_bounds(native, liar):
    liar.lie = lambda asked: told(asked, length=len(asked["request"]["text"]))
    assert ask(native, json.dumps({"text": "é" * 5_000_000}))["length"] == 5_000_000
    liar.lie = lambda asked: told(asked, text="é" * 700_000)
    assert len(ask(native)["text"]) == 700_000
    liar.lie = lambda asked: told(asked, text="x" * 5_000_000)
    with pytest.raises(psycopg.Error, match=r"a message of 50000.. bytes: it may have") as error:
        ask(native)
    assert error.value.sqlstate == "PGR03"
    assert len(ask(native, texts=5)["text"]) == 5_000_000
    liar.lie = lambda asked: told(asked, numbers=[0] * 150_000)
    with pytest.raises(
        psycopg.Error, match=r"answered 15000. values: it may answer 69632"
    ) as error:
        ask(native)
    assert error.value.sqlstate == "PGR03"


def test_nothing_is_left_of_connections_that_ended(native, hostile):
    def held() -> tuple[int, int]:
        [contexts] = native.execute(
            "SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'pgrerank worker'"
        ).fetchone()
        return contexts, len(list(Path(f"/proc/{native.info.backend_pid}/fd").glob("*")))

    hostile.phase = "none"
    assert sqlstate(native, 5) is None
    native.execute("SELECT pgrerank._disconnect()")
    before = held()
    for number in range(48):
        hostile.phase = [*PHASES, "none"][number % (len(PHASES) + 1)]
        hostile.deed = DEEDS["half-dead"]
        sqlstate(native, 5)
    native.execute("SELECT pgrerank._disconnect()")
    assert held() == before


@pytest.mark.parametrize(
    ("options", "is_native"),
    [
        ({}, True),
        ({"sslmode": "prefer"}, True),
        ({"sslmode": "require"}, False),
        ({"sslmode": "verify-full", "sslrootcert": "/nowhere"}, False),
        ({"keepalives": "1"}, False),
        ({"host": "/tmp"}, False),
        ({"host": "one,other"}, False),
        ({"port": "1,2"}, False),
        ({"host": "localhost"}, True),
    ],
)
def test_servers_with_what_it_does_not_know_are_left_to_dblink(native, options, is_native):
    set_worker(native, 1, **options)
    found = native.execute("SELECT pgrerank._is_asked_natively(0)").fetchone()
    assert found == (is_native,)


def test_a_name_is_resolved(native, liar):
    liar.lie = told
    set_worker(native, liar.port, host="localhost")
    native.execute("SELECT pgrerank._disconnect()")
    assert ask(native)["id"] > 0
    native.execute("SELECT pgrerank._disconnect()")
    set_worker(native, liar.port, host="no.such.host.invalid")
    with pytest.raises(psycopg.Error, match=r"no worker can be reached: no\.such\.host\.invalid: "):
        ask(native)


def test_it_reaches_no_other_server_and_nobody_else_s(native, make_role, hostile):
    native.execute(
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1');"
        "CREATE USER MAPPING FOR CURRENT_USER SERVER elsewhere OPTIONS (user 'x', password 'y')"
    )
    connect = "SELECT pgrerank._worker_connect(1, %s, clock_timestamp() + interval '1 s')"
    with pytest.raises(psycopg.Error, match='server "elsewhere" is no worker of pgrerank\'s'):
        native.execute(connect, ("elsewhere",))
    role = make_role()
    with native.transaction(force_rollback=True):
        native.execute(f"SET LOCAL ROLE {role}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            native.execute(connect, ("pgrerank_worker",))


@pytest.mark.parametrize(
    "call", ["_worker_send('x', 9)", "_worker_wait('infinity')", "_worker_take()"]
)
def test_parts_of_a_call_out_of_place_end_with_an_error(native, hostile, call):
    hostile.phase = "none"
    native.execute("SELECT pgrerank._disconnect()")
    with pytest.raises(psycopg.Error, match="the connection to the worker broke"):
        native.execute(f"SELECT pgrerank.{call}")
    native.execute(PING, ("1 s",))
    if call.startswith("_worker_send"):
        native.execute("SELECT pgrerank._worker_send('PING', 9)")
    with pytest.raises(psycopg.Error, match="the connection to the worker broke"):
        native.execute(f"SELECT pgrerank.{call}")
    assert native.execute("SELECT pgrerank._connection()").fetchone() == (None,)
