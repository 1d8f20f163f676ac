"""Feeds bytes from anywhere to whatever reads bytes, and counts the faults.

    python benchmarks/fuzz.py [--inputs 100000] [--parsers kernel,client,wire] [--processes 2]

The kernel, which reads packed token vectors, and the native client, which reads what a worker
answers, are C: libFuzzer feeds them (native/fuzz; wants clang and make), under AddressSanitizer and
UndefinedBehaviorSanitizer. The worker's side of the wire protocol is Python: conversations of all
kinds are spoilt by chance and given to a connection of the server's, in pieces, without a network;
what it says must be whole messages, and it must come to an end.

A fault is a crash, a report of a sanitizer, an exception that the protocol does not know, an answer
that is no message, or an input that takes ten seconds. Prints inputs a second; the last line is one
JSON object with inputs, faults and growth in MiB of each. The exit status is 1 if there are faults.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import multiprocessing
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pgrerank.errors import RequestError
from pgrerank.terminal import note, print_rows
from pgrerank.wire.connection import Connection, Rules
from pgrerank.wire.room import Room
from pgrerank.wire.scram import ScramVerifier
from pgrerank.wire.startup import Gate
from pgrerank.wire.stream import Stream
from pgrerank.wire.types import Rows, Session
from pgrerank.worker.requests import parse
from tests.helpers.wire_served import (
    CANCEL_REQUEST,
    GSS_REQUEST,
    HELLO,
    PASSWORD,
    SSL_REQUEST,
    message,
    packet,
    query,
)

FUZZ = Path(__file__).parents[1] / "native" / "fuzz"
MOST = 4000
HANG_SECONDS, WATCHED = 10, 100
SIZES = (1, 7, 50, 50, *[MOST] * 12)
"""Of the pieces in which bytes come; small ones take time."""
REQUESTS = [
    "PING",
    ";",
    "",
    '{"id": 1, "timeout_ms": 50, "request": {"call": "encode", "texts": ["a", "\\u00fc"],'
    ' "embedding": "m", "late_interaction": null}}',
    '{"id": [1], "request": {"call": "maxsim", "query": "00ff", "documents": ["00", ""]}}',
    '{"request": {"call": "cross_encode", "model": "m", "query": "q", "documents": ["<b>d</b>"],'
    ' "structure": "html"}, "traceparent": "00-1-1-01", "background": true}',
    '{"request": {"call": "highlight", "model": "m", "query": "0", "passages":'
    ' [{"text": "t", "tokens": "00"}]}}',
]
SASL = b"SCRAM-SHA-256\0"
STARTS = [
    HELLO,
    packet(0x30002, b"user\0worker\0database\0models\0application_name\0psql\0\0"),
    packet(0x30003, b"user\0worker\0_pq_.new\0on\0\0"),
    packet(SSL_REQUEST) + HELLO,
    packet(GSS_REQUEST) + packet(SSL_REQUEST) + HELLO,
]
LOGINS = [
    message(b"p", SASL + b"\0\0\0\x10n,,n=,r=rOprNGfw")
    + message(b"p", b"c=biws,r=rOprNGfw,p=AA=="),
    message(b"p", SASL + b"\0\0\0\x16n,,n=worker,r=rOprNGfw") + message(b"p", b"c=biws,r=x"),
    message(b"p", PASSWORD.encode() + b"\0"),
]
TALKS = [
    *(query(text) for text in REQUESTS),
    b"".join(query(text) for text in REQUESTS) + message(b"X"),
    message(b"P", b"\0SELECT 1\0\0\0") + message(b"B", b"\0" * 8) + message(b"S") + query("PING"),
    message(b"F", b"\0\0\0\1") + message(b"S") + message(b"H") + message(b"d", b"x") + query("x"),
]
CONVERSATIONS = [
    packet(CANCEL_REQUEST, b"\0\0\0\1\0\0\0\1"),
    *(start + talk for start, talk in itertools.product(STARTS, TALKS)),
    *(start + login for start, login in itertools.product(STARTS, LOGINS)),
]
LENGTHS = [(value & 0xFFFFFFFF).to_bytes(4) for value in (-1, 0, 3, 4, 5, 8, 2001, 10_001, 2**31)]


def spoil(source: random.Random) -> bytes:
    """A conversation, of which some bytes are others, gone, twice there or from another one."""
    said = bytearray(source.choice(CONVERSATIONS))
    for _ in range(source.choice((0, 1, 1, 2, 3, 8))):
        place = source.randrange(len(said) + 1)
        match source.randrange(6):
            case 0:
                said[place : place + 1] = source.randbytes(1)
            case 1:
                said[place : place + 4] = source.choice(LENGTHS)
            case 2:
                del said[place : place + source.choice((1, 2, 8, 100))]
            case 3:
                said[place:place] = said[place : place + source.choice((1, 8, 100))]
            case 4:
                said[place:] = source.choice(CONVERSATIONS)[-source.randrange(1, 200) :]
            case 5:
                said[place:place] = source.randbytes(source.choice((1, 4, 30)))
    return bytes(said[:MOST])


class Pieces(asyncio.Transport):
    """A connection without a network: bytes come in pieces, and then their end."""

    def __init__(self, stream: Stream, said: bytes, size: int) -> None:
        super().__init__({"socket": _SOCKET, "peername": ("127.0.0.1", 1)})
        self._loop, self._stream = asyncio.get_running_loop(), stream
        self._pieces = [said[at : at + size] for at in range(0, len(said), size)] + [b""] * 4
        self._closing = self._paused = False
        self.answer = bytearray()
        self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._closing or self._paused:
            return
        if not self._pieces:
            self._stream.eof_received()
            return
        if piece := self._pieces.pop(0):
            self._stream.data_received(piece)
        self._loop.call_soon(self._next)

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing

    def pause_reading(self) -> None:
        """Take no more pieces."""
        self._paused = True

    def resume_reading(self) -> None:
        """Go on with pieces."""
        self._paused = False
        self._loop.call_soon(self._next)

    def write(self, data: Any) -> None:
        """Keep what the server says."""
        self.answer += data

    def close(self) -> None:
        """Say that it is over, once."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._stream.connection_lost, None)

    abort = close


_SOCKET = socket.socket()


class Wire(logging.Handler):
    """Feeds connections of the server's, one after the other, and counts what goes wrong."""

    def __init__(self, seed: int) -> None:
        super().__init__(logging.ERROR)
        self._source = random.Random(seed)
        self.faults: list[str] = []
        self.said = b""
        locked = ScramVerifier("worker", PASSWORD)
        self._rules = [
            Rules(answer, Gate("worker", verifier, None, False, 60), 2000, Room(4000), "15.0")
            for verifier in (None, locked)
        ]

    def emit(self, record: logging.LogRecord) -> None:
        """An error that the server logs is a fault."""
        self.fault(record.getMessage())

    def fault(self, what: str) -> None:
        """Keep what happened, and by which bytes."""
        self.faults.append(f"{what}: {self.said!r}")

    def register(self, _connection: Connection) -> int:
        """Let everybody in."""
        return 1

    def cancel(self, _process_id: int, _key: bytes) -> None:
        """Nothing runs that could be cancelled."""

    async def run(self, inputs: int) -> None:
        """Feed so many inputs."""
        asyncio.get_running_loop().set_exception_handler(lambda _, why: self.fault(str(why)))
        for number in range(inputs):
            if number % WATCHED == 0:
                signal.alarm(HANG_SECONDS)
            self.said = spoil(self._source)
            rules = self._rules[number % 4 == 0]
            streams: list[Stream] = []
            stream = Stream(streams.append)
            transport = Pieces(stream, self.said, self._source.choice(SIZES))
            stream.connection_made(transport)
            try:
                await Connection(stream, rules, self).run(lambda: None)
            except Exception as error:
                self.fault(repr(error))
            if not is_whole(bytes(transport.answer)):
                self.fault(f"it answered {bytes(transport.answer)!r}")
        signal.alarm(0)


def is_whole(said: bytes) -> bool:
    """Whether a server's words are messages, up to a refusal of encryption or two before them."""
    at = len(said) - len(said.lstrip(b"N"))
    while at + 5 <= len(said):
        at += 1 + int.from_bytes(said[at + 1 : at + 5])
    return at == len(said)


async def answer(statement: str, _session: Session) -> Rows:
    """Read a request as a worker does."""
    if statement == "PING":
        raise RequestError("no", sqlstate="PGR03")
    await asyncio.sleep(0)
    return Rows(("answer",), [(str(parse(statement).timeout_ms),)], "SELECT 1")


def feed_wire(job: tuple[int, int]) -> tuple[list[str], float]:
    """Feed so many inputs by a seed, in this process; the faults, and its growth in MiB."""
    seed, inputs = job

    def hang(*_: object) -> None:
        raise SystemExit(f"{WATCHED} inputs took {HANG_SECONDS} s, the last of them: {wire.said!r}")

    signal.signal(signal.SIGALRM, hang)
    wire = Wire(seed)
    log = logging.getLogger("pgrerank")
    log.addHandler(wire)
    log.propagate = False
    asyncio.run(wire.run(1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asyncio.run(wire.run(inputs))
    return wire.faults, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def fuzz_wire(inputs: int, processes: int, seed: int) -> dict[str, Any]:
    """Feed the worker's side of the wire, in processes side by side."""
    jobs = [(seed + number, inputs // processes) for number in range(processes)]
    with multiprocessing.Pool(processes) as pool:
        found = pool.map(feed_wire, jobs, chunksize=1)
    faults = [fault for faults, _ in found for fault in faults]
    for fault in faults[:20]:
        note(f"FAULT {fault}")
    grown = max(growth for _, growth in found)
    return {"inputs": jobs[0][1] * processes, "faults": len(faults), "grown_mib": round(grown, 1)}


def fuzz_c(parser: str, inputs: int, pg_config: str, seed: int) -> dict[str, Any]:
    """Have libFuzzer feed what is written in C; it ends with the first fault."""
    with tempfile.TemporaryDirectory() as build:
        done = subprocess.run(
            [
                *("make", "-s", "-C", str(FUZZ), f"fuzz-{parser}", f"BUILD={build}"),
                *(f"PG_CONFIG={pg_config}", f"LIMIT=-runs={inputs} -seed={seed}"),
            ],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    statistics = dict(re.findall(r"stat::(\w+): +(\d+)", done.stderr))
    if done.returncode:
        note(done.stderr[-4000:])
    ran = int(statistics.get("number_of_executed_units", 0))
    grown = int(statistics.get("peak_rss_mb", 0))
    return {"inputs": ran, "faults": int(done.returncode != 0), "grown_mib": grown}


def main() -> None:
    """Fuzz each, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="for each parser")
    parser.add_argument("--parsers", default="kernel,client,wire")
    parser.add_argument("--processes", type=int, default=2, help="that the wire is fuzzed by")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pg-config", help="of the server's headers; by default the embedded one")
    arguments = parser.parse_args()
    found = {}
    for name in arguments.parsers.split(","):
        begun = time.perf_counter()
        if name == "wire":
            found[name] = fuzz_wire(arguments.inputs, arguments.processes, arguments.seed)
        else:
            pg_config = arguments.pg_config or embedded_pg_config()
            found[name] = fuzz_c(name, arguments.inputs, pg_config, arguments.seed)
        found[name]["a_second"] = round(found[name]["inputs"] / (time.perf_counter() - begun))
    header = ["parser", *found[name]]
    print_rows(
        header, [[key, *map(str, row.values())] for key, row in found.items()], as_json=False
    )
    print(json.dumps(found))
    sys.exit(any(row["faults"] for row in found.values()))


def embedded_pg_config() -> str:
    """The embedded server's, which has headers and libraries."""
    from pgrerank.embedded.binaries import account, find

    return str(find(account()) / "pg_config")


if __name__ == "__main__":
    main()
