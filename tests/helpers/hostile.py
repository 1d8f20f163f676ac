"""Workers gone bad, at each point of a connection: the phases, and what may be done in them."""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

from pgrerank.errors import ProtocolError
from pgrerank.wire import messages
from pgrerank.wire.scram import MECHANISM, ProofRejectedError, ScramVerifier
from pgrerank.wire.types import Rows, Session
from tests.helpers.wire_served import message

PASSWORD = "secret"
LONG = 900_000_000
PHASES = (
    *("connect", "challenge", "proof", "admission"),
    *("welcome", "answer", "middle of the answer"),
)
"""When it goes bad: instead of sending what a worker would."""

_LARGEST = messages.READY.join(
    [messages.answer(Rows(("a",), [(f'[{"0," * 65_000}"{"x" * 4_030_000}"]',)], "SELECT 1")), b""]
)
Deed = Callable[[socket.socket, bytes], None]
"""What it does over a connection, given what is due there."""


def stop(connection: socket.socket, _due: bytes) -> None:
    """Say nothing more, and keep the connection."""
    while connection.recv(65536):
        pass


def drip(connection: socket.socket, _due: bytes) -> None:
    """One byte of a message that is never whole, and another, and another."""
    connection.sendall(b"D\0\0\xff\0")
    while True:
        connection.sendall(b"x")
        time.sleep(0.01)


def notify(connection: socket.socket, _due: bytes) -> None:
    """Be at work without end, as fast as can be."""
    while True:
        connection.sendall(messages.AT_WORK * 1000)


def notice(connection: socket.socket, _due: bytes) -> None:
    """Names and values without end, each another."""
    number = 0
    while True:
        number += 1
        connection.sendall(message(b"S", f"name {number}\0{'x' * 30_000}\0".encode()))


def rows(connection: socket.socket, _due: bytes) -> None:
    """Rows without end."""
    row = messages.answer(Rows(("answer",), [("x" * 1000,)], "SELECT 1"))
    while True:
        connection.sendall(row * 100)


def flood(kind: bytes) -> Deed:
    """One message of 900 MB."""

    def send(connection: socket.socket, _due: bytes) -> None:
        connection.sendall(kind + (LONG + 10).to_bytes(4) + b"\0\1" + LONG.to_bytes(4))
        for _ in range(LONG // 1_000_000):
            connection.sendall(b"7" * 1_000_000)

    return send


def exhaust(connection: socket.socket, _due: bytes) -> None:
    """As many values, and as many bytes, as an answer may have."""
    connection.sendall(_LARGEST)


def leave(connection: socket.socket, due: bytes) -> None:
    """Close in the middle of what is due."""
    connection.sendall(due[: len(due) // 2])


def reset(connection: socket.socket, _due: bytes) -> None:
    """Break the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def babble(connection: socket.socket, _due: bytes) -> None:
    """Bytes by chance."""
    for _ in range(20):
        connection.sendall(random.randbytes(random.randrange(1, 3000)))


def mislead(connection: socket.socket, _due: bytes) -> None:
    """Bytes by chance as bodies of messages that are well framed."""
    for _ in range(20):
        kind = random.choice(b"RRSKZNEDTCAv").to_bytes(1)
        connection.sendall(message(kind, random.randbytes(random.randrange(40))))


def latin(connection: socket.socket, _due: bytes) -> None:
    """A row and an error in another encoding."""
    row = b"\0\1" + (15).to_bytes(4) + b'{"a": "caf\xe9"}  '
    connection.sendall(message(b"D", row) + message(b"E", b"MNon \xe9!\0C22023\0\0"))


def iterate(connection: socket.socket, due: bytes) -> None:
    """Ask for two billion rounds of PBKDF2."""
    connection.sendall(message(b"R", due[5:].replace(b"i=4096", b"i=2147483647")))
    stop(connection, due)


def hasten(connection: socket.socket, due: bytes) -> None:
    """Ask for one round, which makes a password easy to find."""
    connection.sendall(message(b"R", due[5:].replace(b"i=4096", b"i=1")))
    stop(connection, due)


def forge(connection: socket.socket, due: bytes) -> None:
    """Claim to know the password."""
    signature = b"v=" + base64.b64encode(random.randbytes(32))
    admitted = message(b"R", bytes(4)) + messages.READY
    connection.sendall(message(b"R", b"\0\0\0\x0c" + signature) + admitted)
    stop(connection, due)


def admit(connection: socket.socket, due: bytes) -> None:
    """Let in whoever comes."""
    connection.sendall(message(b"R", bytes(4)) + messages.READY)
    stop(connection, due)


DEEDS: dict[str, Deed] = {
    "stopped": stop,
    "dripping": drip,
    "endless notifications": notify,
    "endless parameters": notice,
    "endless rows": rows,
    "a row of 900 MB": flood(b"D"),
    "a notice of 900 MB": flood(b"N"),
    "an error of 900 MB": flood(b"E"),
    "the largest answer": exhaust,
    "half-dead": leave,
    "reset": reset,
    "babbling": babble,
    "misleading": mislead,
    "another encoding": latin,
    "iterating": iterate,
    "hastening": hasten,
    "forging": forge,
    "admitting": admit,
}


class HostileWorker:
    """A worker that knows the password and does well until a phase, when it does its `deed`."""

    def __init__(self, server: socket.socket) -> None:
        self.port: int = server.getsockname()[1]
        self.phase = PHASES[0]
        self.deed: Deed = stop
        self._server = server
        self._verifier = ScramVerifier("pgrerank", PASSWORD)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        phase, deed = self.phase, self.deed
        with contextlib.suppress(OSError, ProtocolError, ProofRejectedError), connection:
            for name, answer in zip(PHASES, self._answers(connection), strict=True):
                if name == phase:
                    deed(connection, answer)
                    return
                connection.sendall(answer)

    def _answers(self, connection: socket.socket) -> Iterator[bytes]:
        """What a worker says in each phase, having read what it answers."""
        exchange = self._verifier.exchange("pgrerank")
        connection.recv(10_000)
        yield messages.sasl(MECHANISM)
        _, first = messages.parse_sasl_initial(connection.recv(10_000)[5:])
        yield messages.sasl_continue(exchange.first(first))
        yield messages.sasl_final(exchange.final(connection.recv(10_000)[5:]))
        hello = messages.welcome(Session(1, "pgrerank", "x", "", "", tls=False), b"key.", "18")
        yield hello[:9]
        yield hello[9:]
        connection.recv(65536)
        whole = messages.answer(Rows(("answer",), [('"PONG"',)], "SELECT 1"))
        yield whole[:45]
        yield whole[45:] + messages.READY


@contextlib.contextmanager
def hostile_worker() -> Iterator[HostileWorker]:
    """One on a port of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield HostileWorker(server)
        server.shutdown(socket.SHUT_RDWR)
