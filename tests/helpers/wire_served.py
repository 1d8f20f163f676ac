"""A wire server on a thread and a client made of a socket, for the tests of the wire."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import psycopg

from pgrerank.wire.server import RequestError, Rows, Session, WireServer
from tests.helpers.sources import Source

PASSWORD = "sésame ﬁ\N{NO-BREAK SPACE}x"
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


class Served:
    """A wire server on a loop in a thread of its own, and what its handler has seen."""

    def __init__(self, **options: Any) -> None:
        self.started, self.cancelled, self.go = (threading.Event() for _ in range(3))
        self.seen: list[str] = []
        self.problems: list[str] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.problems.append(str(context)))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        options = {"user": "worker", "password": PASSWORD, "ssl": None, **options}
        self.server = WireServer(self.handle, **options)
        self.do(self.server.start("127.0.0.1", 0))
        self.port = self.server.port

    def reset(self) -> None:
        for event in (self.started, self.cancelled, self.go):
            event.clear()

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        options = {"user": "worker", "password": PASSWORD, "dbname": "models", **options}
        return psycopg.connect(host="127.0.0.1", port=self.port, autocommit=True, **options)

    def answers(self, **options: Any) -> bool:
        with closing(self.connect(**options)) as connection:
            return bool(connection.pgconn.exec_(b"PING").get_value(0, 0) == b"pong")

    def recovers(self, **options: Any) -> bool:
        """Whether it answers as soon as it has noticed that clients have left."""
        for _ in range(100):
            try:
                return self.answers(**options)
            except psycopg.OperationalError:
                time.sleep(0.02)
        return False

    async def handle(self, text: str, session: Session) -> Rows:
        text = text.strip()
        self.seen.append(text[:20])
        if text == "WAIT":
            await self.wait()
        elif text == "FAIL":
            raise RequestError("model \0 \ud800 is unknown", sqlstate="42704")
        elif text.startswith("BUG"):
            raise ValueError(text)
        elif text == "WHO":
            columns = ("user", "database", "application", "peer", "pid", "tls")
            s = session
            who = (s.user, s.database, s.application_name, s.peer, str(s.process_id), str(s.tls))
            return Rows(columns, [who], "SHOW")
        shapes: dict[str, list[tuple[str | None, ...]]] = {
            "PING": [("pong",)],
            "NULLS": [(None,), ("",), ("naïve 漢字 🐘",)],
            "RAGGED": [("one", "two")],
            "NUL": [("a\0b",)],
            "LARGE": [("x" * 30_000_000,)],
        }
        rows = shapes.get(text, [(str(len(text)),)])
        return Rows(("value",), rows, f"SELECT {len(rows)}")

    async def wait(self) -> None:
        self.started.set()
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def close(self) -> None:
        self.do(self.server.stop(0))
        left = asyncio.all_tasks(self.loop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        assert (self.problems, left, self.server.connections) == ([], set(), 0)


S = TypeVar("S", bound=Served)


@contextmanager
def serving(**options: Any) -> Iterator[Served]:
    served = Served(**options)
    try:
        yield served
    finally:
        served.close()


@contextmanager
def as_worker(kind: type[S], source: Source) -> Iterator[S]:
    """A server of the test's own in the worker's place, over documents that are encoded."""
    served = kind(user="pgrerank", password="secret")
    connection = source.connection
    connection.execute("SELECT pgrerank.set_worker('127.0.0.1', %s, 'secret')", (served.port,))
    source.create()
    source.encode_by_hand()
    yield served
    connection.execute("SELECT pgrerank._disconnect()")
    served.close()


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", len(body) + 8, code) + body


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def query(text: str) -> bytes:
    return message(b"Q", text.encode() + b"\0")


HELLO = packet(0x30000, b"user\0worker\0\0")


class Raw:
    """A client made of a socket."""

    def __init__(self, served: Served, *first: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        self.file = self.socket.makefile("rb")
        for data in first:
            self.socket.sendall(data)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def receive(self) -> tuple[bytes, bytes]:
        """The next message, but for those that say that the server is at work."""
        while header := self.file.read(5):
            body = self.file.read(int.from_bytes(header[1:]) - 4)
            if header[:1] != b"A":
                return header[:1], body
        return b"", b""

    def until_ready(self) -> list[tuple[bytes, bytes]]:
        got = [self.receive()]
        while got[-1][0] not in (b"Z", b""):
            got.append(self.receive())
        return got

    def kinds(self) -> bytes:
        return b"".join(kind for kind, _ in self.until_ready())

    def login(self) -> tuple[bytes, bytes]:
        self.socket.sendall(HELLO)
        key = dict(self.until_ready())[b"K"]
        return key[:4], key[4:]

    def error(self) -> dict[str, str]:
        kind, body = self.receive()
        assert kind == b"E"
        return {field[:1].decode(): field[1:].decode() for field in body.split(b"\0") if field}

    def dies(self, sqlstate: str) -> None:
        error = self.error()
        assert (error["S"], error["C"]) == ("FATAL", sqlstate), error
        assert self.file.read() == b""


def next_result(connection: psycopg.Connection[Any]) -> Any:
    """The next result of a query that was sent. PQgetResult alone would wait for it with the
    interpreter locked, and so lock out the server, which runs on a thread of this process.
    """
    while connection.pgconn.is_busy():
        select.select([connection.pgconn.socket], [], [], 20)
        connection.pgconn.consume_input()
    return connection.pgconn.get_result()


@contextmanager
def cut_off(answer: bytes = b"") -> Iterator[int]:
    """The port of a worker whose network is cut: what comes is taken, and nothing goes back.

    Or it gives an `answer` to whatever comes first.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, closing(_Kept()) as kept:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer and connection.recv(1000):
                    connection.sendall(answer)

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


class _Kept(list[socket.socket]):
    def close(self) -> None:
        for connection in self:
            connection.close()
