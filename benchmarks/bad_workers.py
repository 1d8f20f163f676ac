"""Whether a worker gone bad can hang or flood a session that asks it by the native client.

    python benchmarks/bad_workers.py [--calls 1000] [--timeout 100] [--dsn DSN]

A worker, in a process of its own, does well until a phase of the connection (before, in and after
authentication, in the answer), and then stops, drips, floods, dies or lies: all of PHASES and DEEDS
in tests/helpers/hostile.py, in turn. Each call has a timeout of so many milliseconds; every tenth
has a minute, and is cancelled after 30 ms. Prints how long calls took; the last line is one JSON
object: which ended more than 100 ms after their timeout or cancel; what they ended with; the MiB by
which the session's memory grew at most; and how many of three impostors, who know no password, each
client believed.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import multiprocessing
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psycopg
from rpc import database

sys.path.insert(0, str(Path(__file__).parents[1]))

from pgrerank.install import schema
from pgrerank.terminal import print_rows
from tests.helpers.hostile import DEEDS, PASSWORD, PHASES, hostile_worker

GRACE_MS = 100
CANCEL_MS = 30
IMPOSTORS = [("connect", "admitting"), ("challenge", "admitting"), ("proof", "forging")]
ASK = "SELECT pgrerank._ask_worker('{}', clock_timestamp() + %s * interval '1 ms')"


def serve(orders: Connection) -> None:
    """A hostile worker, told its phase and deed before each call."""
    with hostile_worker() as worker:
        orders.send(worker.port)
        while True:
            worker.phase, deed = orders.recv()
            worker.deed = DEEDS[deed]
            orders.send("ready")


def set_up(dsn: str, port: int) -> None:
    """Pgrerank, in a session of its own as that takes memory, and the worker's address."""
    with psycopg.connect(dsn, autocommit=True) as session:
        schema.install(session)
        if session.execute("SELECT pgrerank.has_native_client()").fetchone() != (True,):
            sys.exit("the server has no native client: pgrerank native install")
        session.execute("SELECT pgrerank.set_worker('127.0.0.1', %s, %s)", (port, PASSWORD))


def peak(session: psycopg.Connection) -> float:
    """The most memory that a session has had, in MiB."""
    status = Path(f"/proc/{session.info.backend_pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@dataclass
class Found:
    """What calls came to: milliseconds beyond their end, and SQLSTATEs."""

    over: list[tuple[float, str]] = field(default_factory=list)
    ended: collections.Counter[str] = field(default_factory=collections.Counter)

    def call(
        self, session: psycopg.Connection, timeout: float, *, cancel: bool = False, name: str = ""
    ) -> None:
        """One call, which its timeout or a cancel must end."""
        timer = threading.Timer(CANCEL_MS / 1000, session.cancel_safe)
        begun = time.perf_counter()
        if cancel:
            timer.start()
        try:
            session.execute(ASK, (60_000 if cancel else timeout,))
            self.ended["answered"] += 1
        except psycopg.Error as error:
            self.ended[error.sqlstate or "lost"] += 1
        took = 1000 * (time.perf_counter() - begun)
        timer.cancel()
        self.over.append((took - (CANCEL_MS if cancel else timeout), name))


def ask(session: psycopg.Connection, orders: Connection, arguments: argparse.Namespace) -> Found:
    """All phases and deeds in turn."""
    found = Found()
    cases = itertools.cycle(itertools.product(DEEDS, PHASES))
    for number, (deed, phase) in zip(range(arguments.calls), cases, strict=False):
        session.execute("SELECT pgrerank._disconnect()")
        orders.send((phase, deed))
        orders.recv()
        cancel = number % 10 == 9
        found.call(session, arguments.timeout, cancel=cancel, name=f"{deed}: {phase}")
        time.sleep(0.005)  # a cancel that is on its way hits nothing else
    return found


def believed(session: psycopg.Connection, orders: Connection) -> int:
    """How many of the impostors a session lets answer."""
    found = Found()
    for phase, deed in IMPOSTORS:
        session.execute("SELECT pgrerank._disconnect()")
        orders.send((phase, deed))
        orders.recv()
        found.call(session, 1000)
    return len(IMPOSTORS) - found.ended["PGR01"]


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=100, help="of a call, in milliseconds")
    parser.add_argument("--dsn", help="a scratch database; by default an embedded server")
    arguments = parser.parse_args()
    orders, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    with database(arguments.dsn) as dsn:
        set_up(dsn, orders.recv())
        with psycopg.connect(dsn, autocommit=True) as session:
            orders.send(("none", "stopped"))
            orders.recv()
            Found().call(session, 5000)
            before = peak(session)
            found = ask(session, orders, arguments)
            grown = peak(session) - before
            trusted = {"native": believed(session, orders)}
            session.execute("DROP EXTENSION pgrerank_native")
            trusted["dblink"] = believed(session, orders)
    over, names = zip(*sorted(found.over), strict=True)
    figures = (statistics.median(over), over[-1 - len(over) // 100], over[-1], grown)
    print_rows(
        ["calls", "p50 over, ms", "p99 over, ms", "longest over, ms", "grown MiB"],
        [[str(len(over)), *(f"{figure:.1f}" for figure in figures)]],
        as_json=False,
    )
    late = [name for value, name in found.over if value > GRACE_MS]
    outcome = {"calls": len(over), "late": late, "longest_ms": round(over[-1]), "by": names[-1]}
    ended = {"ended": found.ended, "grown_mib": round(grown, 1), "believed": trusted}
    print(json.dumps(outcome | ended))


if __name__ == "__main__":
    main()
