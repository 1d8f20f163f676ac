"""Many workers: each announces itself, and searches find one that lives."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.helpers.searching import CLIENTS, each_client, use_client
from tests.helpers.sources import Source
from tests.helpers.wire_served import cut_off
from tests.helpers.workers import WorkerProcess, wait_for, worker

SEARCH = "SELECT stage, degraded FROM pgrerank.documents_search('bread', strict => true"
ALL = [("cross_encoder", False)] * 3


@pytest.fixture
def pair(dsn, db, tiny_models, tmp_path) -> Iterator[dict[int, WorkerProcess]]:
    """Two workers that serve, by number, and a reranker whose documents are encoded."""
    source = Source(db)
    source.models(**tiny_models)
    source.create(timeout="20 s")
    with contextlib.ExitStack() as stack:
        found = {}
        for number in (1, 2):
            (tmp_path / str(number)).mkdir()
            found[number] = stack.enter_context(worker(dsn, tmp_path / str(number), "--preload"))
        wait_for(db, "pending = 0")
        yield found


def served_by(connection: psycopg.Connection) -> int:
    """The number of the worker that a session is connected to."""
    assert connection.execute(SEARCH + ")").fetchall() == ALL
    [name] = connection.execute("SELECT pgrerank._connection()").fetchone()
    return int(name.split()[1])


def session_of(dsn: str, stack: contextlib.ExitStack, number: int) -> psycopg.Connection:
    """A session that is connected to that worker."""
    for _ in range(40):
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        if served_by(connection) == number:
            return connection
    raise AssertionError(f"no session got worker {number}")


def test_each_announces_itself_and_says_how_busy_it_is(dsn, db, pair):
    with contextlib.ExitStack() as stack:
        for number in pair:
            session_of(dsn, stack, number)
        time.sleep(1.5)  # a report is made every second
        rows = db.execute(
            "SELECT worker, host, models, capacity, sessions > 0, is_alive,"
            " heartbeat_age < '1 second' FROM pgrerank.workers"
        ).fetchall()
    models = ["embedding", "reranker", "tokens"]
    assert rows == [(number, "127.0.0.1", models, 64, True, True, True) for number in pair]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP])
def test_strict_searches_go_to_the_other_when_one_is_gone_or_frozen(dsn, db, pair, signal_, client):
    use_client(db, client)
    with contextlib.ExitStack() as stack:
        old = {number: session_of(dsn, stack, number) for number in pair}
        pair[1].signal(signal_)
        for connection in old.values():
            started = time.monotonic()
            assert served_by(connection) == 2
            assert time.monotonic() - started < 3
        for _ in range(10):
            started = time.monotonic()
            assert served_by(stack.enter_context(psycopg.connect(dsn, autocommit=True))) == 2
            assert time.monotonic() - started < 3
        time.sleep(5 if signal_ == signal.SIGSTOP else 0)
        alive = "SELECT worker, is_alive FROM pgrerank.workers"
        assert connection.execute(alive).fetchall() == [(1, False), (2, True)]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_rolling_restart_loses_no_strict_search(dsn, db, pair, tmp_path, client):
    use_client(db, client)
    ending = threading.Event()
    failures: list[BaseException] = []
    searches = [0]

    def search(keep: bool) -> None:
        connection = psycopg.connect(dsn, autocommit=True)
        while not ending.is_set():
            try:
                assert connection.execute(SEARCH + ")").fetchall() == ALL
            except BaseException as error:
                failures.append(error)
                raise
            searches[0] += 1
            if not keep:
                connection.close()
                connection = psycopg.connect(dsn, autocommit=True)
        connection.close()

    threads = [threading.Thread(target=search, args=(keep,)) for keep in (True, False, True)]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            thread.start()
        try:
            for number in pair:
                pair[number].signal(signal.SIGTERM)
                assert pair[number].wait(30) == 0
                folder = tmp_path / f"again {number}"
                folder.mkdir()
                stack.enter_context(worker(dsn, folder, "--preload"))
        finally:
            ending.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert searches[0] > 20


def test_one_that_leaves_takes_its_address_and_secret_along(db, pair):
    servers = "SELECT srvname FROM pg_foreign_server ORDER BY 1"
    assert db.execute(servers).fetchall() == [("pgrerank_worker_1",), ("pgrerank_worker_2",)]
    pair[1].signal(signal.SIGTERM)
    assert pair[1].wait(30) == 0
    assert db.execute(servers).fetchall() == [("pgrerank_worker_2",)]
    assert db.execute("SELECT worker FROM pgrerank.workers").fetchall() == [(2,)]


def test_one_that_was_killed_is_forgotten_when_its_address_is_taken_again(dsn, db, pair, tmp_path):
    port = db.execute("SELECT port FROM pgrerank.workers WHERE worker = 1").fetchone()[0]
    pair[1].signal(signal.SIGKILL)
    (tmp_path / "again").mkdir()
    with worker(dsn, tmp_path / "again", listen=f"127.0.0.1:{port}"):
        assert db.execute("SELECT count(*) FROM pgrerank.workers").fetchone() == (2,)
        assert db.execute("SELECT count(*) FROM pg_foreign_server").fetchone() == (2,)


def test_a_connection_that_leads_nowhere_is_given_up_for_another(dsn, db, pair):
    """Its heartbeat is fine, but what is sent to its address is swallowed."""
    with cut_off() as port, psycopg.connect(dsn, autocommit=True) as fresh:
        [right] = db.execute("SELECT port FROM pgrerank.workers WHERE worker = 2").fetchone()
        db.execute(f"ALTER SERVER pgrerank_worker_1 OPTIONS (SET port '{port}')")
        for client in each_client(db):
            db.execute(f"ALTER SERVER pgrerank_worker_2 OPTIONS (SET port '{right}')")
            for _ in range(4):
                fresh.execute("SELECT pgrerank._disconnect()")
                started = time.monotonic()
                assert served_by(fresh) == 2, client
                assert time.monotonic() - started < 2, client
            db.execute(f"ALTER SERVER pgrerank_worker_2 OPTIONS (SET port '{port}')")
            fresh.execute("SELECT pgrerank._disconnect()")
            started = time.monotonic()
            with pytest.raises(psycopg.Error) as error:
                fresh.execute(SEARCH + ", timeout => '800 ms')")
            assert error.value.sqlstate in ("PGR01", "PGR02"), client
            assert time.monotonic() - started < 0.9 + 1, client


def test_others_avoid_a_worker_at_which_a_session_is_stuck(dsn, db, pair):
    with cut_off() as port, psycopg.connect(dsn, autocommit=True) as stuck:
        db.execute(f"ALTER SERVER pgrerank_worker_1 OPTIONS (SET port '{port}')")
        for client in each_client(db):

            def connect() -> None:
                with contextlib.suppress(psycopg.Error):
                    stuck.execute(
                        "SELECT pgrerank._connect_until(1, clock_timestamp() + interval '900 ms')"
                    )

            thread = threading.Thread(target=connect)
            thread.start()
            time.sleep(0.76)
            chosen: list[int] = []
            while thread.is_alive():
                [choice] = db.execute(
                    "SELECT pgrerank._choose_worker('{}', clock_timestamp() + interval '2 s')"
                ).fetchone()
                if thread.is_alive():
                    chosen.append(choice)
            thread.join()
            # Whoever is late with a heartbeat gives way, which on a busy machine worker 2 may be.
            assert chosen.count(2) > 0.8 * len(chosen), client


def test_ones_own_cancel_is_heeded_while_a_session_connects(dsn, db, pair):
    with cut_off() as port, psycopg.connect(dsn, autocommit=True) as fresh:
        for number in pair:
            db.execute(f"ALTER SERVER pgrerank_worker_{number} OPTIONS (SET port '{port}')")
        fresh.execute("SET statement_timeout = '200ms'")
        for client in each_client(db):
            with pytest.raises(psycopg.errors.QueryCanceled):
                fresh.execute(SEARCH + ")")
            held = fresh.execute("SELECT pgrerank._times_of('connecting')").fetchall()
            assert held == [], client


def test_an_impostor_who_knows_no_password_is_refused(dsn, db, source):
    """By dblink from libpq 16 on; the server here has it."""
    with cut_off(answer=b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I") as port:
        db.execute("SELECT pgrerank.set_worker('127.0.0.1', %s, 'secret')", (port,))
        for _ in each_client(db):
            with pytest.raises(psycopg.Error, match="no worker can be reached"):
                db.execute("SELECT pgrerank.ping_worker()")


def test_sessions_of_one_role_free_each_other_where_no_worker_may(dsn, db, pair, make_role):
    """All hang as dblink connects, several at a time; each is cancelled, and none beyond that."""
    use_client(db, "dblink")
    role = make_role()
    db.execute(f"GRANT SELECT ON documents TO {role}")
    with cut_off() as port:
        for number in pair:
            db.execute(f"ALTER SERVER pgrerank_worker_{number} OPTIONS (SET port '{port}')")
        taken: list[float] = []
        errors: list[str | None] = []

        def search() -> None:
            conninfo = make_conninfo(dsn, user=role, password=role)
            with psycopg.connect(conninfo, autocommit=True) as connection:
                for _ in range(3):
                    started = time.monotonic()
                    try:
                        connection.execute(SEARCH + ", timeout => '700 ms')")
                    except psycopg.Error as error:
                        errors.append(error.sqlstate)
                    taken.append(time.monotonic() - started)
                connection.execute("SELECT pg_sleep(0.2)")  # no cancel comes late

        threads = [threading.Thread(target=search) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(errors) <= {"PGR01", "PGR02"}
    assert (len(errors), len(taken)) == (18, 18)
    assert max(taken) < 0.8 + 1
