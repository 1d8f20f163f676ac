"""Whether searches notice that one of two workers is killed, stopped or cut off.

    python benchmarks/outages.py [--rounds 4] [--timeout 1000] [--clients native,dblink]

An embedded server, and two workers behind proxies of our own. Some sessions search again and again,
each with a timeout of so many milliseconds; others open a new session for each search. In each
round one worker, this one or that in turn, is killed, stopped or blackholed (the proxy passes
nothing on, and tells nobody) for some seconds, by which both are there again. All that begins
within these seconds counts, for open and new sessions apart.

Prints by how many milliseconds searches outlasted their timeout, and which share was whole, not
degraded, of those that began more than a second after the event. The last line is one JSON object
with the worst p99 and the smallest share. A machine that is too busy is late by itself: `idle_ms`
says by how much a thread of this process that did nothing was, at p99.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos import set_up
from chaos_checker import settle
from chaos_faults import Worker, start_server

from pgrerank.terminal import note, print_rows
from tests.helpers.tiny_models import make as make_models

SESSIONS = 3
"""Sessions that stay open, and as many that open a new one for each search."""
LASTS, AFTER = 3.0, 1.0
"""Seconds that an event lasts, and after which searches should be whole again."""
SEARCH = (
    "SELECT bool_or(degraded), max(reason)"
    " FROM pgrerank.notes_search(%s, top_k => 5, timeout => %s, strict => false)"
)


@dataclass
class Searched:
    """One search: when it began, how long it took, and why its answer was not whole, if so."""

    begun: float
    took: float
    reason: str | None


@dataclass
class Round:
    """What sessions of one kind saw around one kind of event: how long searches took, and what
    was wrong with those that began later.
    """

    took: list[float] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)


class Sessions:
    """Threads that search until told to stop."""

    def __init__(self, dsn: str, timeout: float) -> None:
        self._dsn, self._timeout = dsn, timeout
        self.searched: dict[str, list[Searched]] = {"open": [], "new": []}
        self.naps: list[float] = []
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=deed)
            for deed in [self._open, self._new] * SESSIONS + [self._nap]
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stop searching."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _search(self, kind: str, connection: psycopg.Connection) -> None:
        begun = time.monotonic()
        query = f"bread and water {time.monotonic_ns() % 1000}"
        cursor = connection.execute(SEARCH, (query, f"{self._timeout} ms"))
        [degraded, reason] = cursor.fetchone() or [True, None]
        reason = reason or "no rows" if degraded is not False else None
        self.searched[kind].append(Searched(begun, time.monotonic() - begun, reason))
        time.sleep(0.02)

    def _open(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._ending.is_set():
                self._search("open", connection)

    def _new(self) -> None:
        while not self._ending.is_set():
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                self._search("new", connection)

    def _nap(self) -> None:
        while not self._ending.is_set():
            begun = time.monotonic()
            time.sleep(0.01)
            self.naps.append(time.monotonic() - begun - 0.01)


@contextlib.contextmanager
def killed(worker: Worker) -> Iterator[None]:
    """A worker that has died, and is started anew."""
    worker.signal(signal.SIGKILL)
    yield
    worker.tend()
    worker.process.wait_until_ready()


@contextlib.contextmanager
def stopped(worker: Worker) -> Iterator[None]:
    """A worker that gets no processor."""
    worker.signal(signal.SIGSTOP)
    yield
    worker.signal(signal.SIGCONT)


@contextlib.contextmanager
def blackholed(worker: Worker) -> Iterator[None]:
    """A worker of which nothing comes, though its heartbeat reaches the database."""
    worker.proxy.spoil("cut")
    yield
    worker.proxy.mend()


EVENTS = {"killed": killed, "stopped": stopped, "blackholed": blackholed}


def have(event: Callable, worker: Worker, sessions: Sessions, found: dict[str, Round]) -> None:
    """One round: the event, and what sessions saw of it."""
    begun = time.monotonic()
    with event(worker):
        time.sleep(LASTS)
        ended = time.monotonic()
    time.sleep(2)
    for kind, searched in sessions.searched.items():
        seen = [one for one in searched if begun <= one.begun <= ended]
        found[kind].took += [one.took for one in seen]
        found[kind].reasons += [one.reason for one in seen if one.begun > begun + AFTER]


def measure(
    dsn: str, workers: list[Worker], client: str, arguments: argparse.Namespace
) -> tuple[dict[tuple[str, str, str], Round], list[float]]:
    """All rounds by one client."""
    rounds: dict[tuple[str, str, str], Round] = {}
    sessions = Sessions(dsn, arguments.timeout)
    try:
        time.sleep(2)
        for name in arguments.events.split(","):
            found = {kind: Round() for kind in sessions.searched}
            for number in range(arguments.rounds):
                have(EVENTS[name], workers[number % len(workers)], sessions, found)
            rounds |= {(client, name, kind): one for kind, one in found.items()}
    finally:
        sessions.end()
    return rounds, sessions.naps


def p99(values: list[float]) -> float:
    """The 99th percentile, or the largest of a few."""
    return sorted(values)[-1 - len(values) // 100]


def report(
    rounds: dict[tuple[str, str, str], Round], naps: list[float], timeout: float
) -> dict[str, float]:
    """Print all, and return the worst."""
    late = {key: 1000 * p99(one.took) - timeout for key, one in rounds.items()}
    whole = {key: one.reasons.count(None) / len(one.reasons) for key, one in rounds.items()}
    print_rows(
        ["client", "worker", "sessions", "searches", "p99 over, ms", f"whole after {AFTER:g} s"],
        [
            [*key, str(len(one.took)), f"{late[key]:.0f}", f"{100 * whole[key]:.1f} %"]
            for key, one in rounds.items()
        ],
        as_json=False,
    )
    for key, one in rounds.items():
        for reason, count in Counter(one.reasons).items():
            if reason is not None:
                print(f"{', '.join(key)}: {count} times: {reason}")
    return {
        "p99_over_ms": round(max(late.values())),
        "least_whole": round(min(whole.values()), 4),
        "searches": sum(len(one.took) for one in rounds.values()),
        "idle_ms": round(1000 * p99(naps), 1),
    }


@contextlib.contextmanager
def two_workers() -> Iterator[tuple[str, list[Worker]]]:
    """A server with a hundred documents, encoded, and workers behind proxies."""
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgrerank-outages-"))
        folder = Path(name)
        folder.chmod(0o755)
        server = start_server(folder / "postgres")
        stack.callback(server.stop)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            set_up(connection, make_models(folder))
            connection.execute(
                "INSERT INTO notes SELECT i, 'bread of flour and water ' || i, 1"
                " FROM generate_series(1, 100) i"
            )
            workers = [Worker(number, server.dsn, folder, str(number)) for number in (1, 2)]
            for worker in workers:
                stack.callback(lambda worker=worker: worker.process.close())
            for worker in workers:
                worker.process.wait_until_ready()
            settle(connection, note)
        yield server.dsn, workers


def main() -> None:
    """Start, harm, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4, help="of each event, for each client")
    parser.add_argument("--timeout", type=float, default=1000, help="of a search, in milliseconds")
    parser.add_argument("--clients", default="native,dblink")
    parser.add_argument("--events", default=",".join(EVENTS))
    arguments = parser.parse_args()
    rounds: dict[tuple[str, str, str], Round] = {}
    naps: list[float] = []
    with two_workers() as (dsn, workers):
        for client in arguments.clients.split(","):
            if client == "dblink":
                with psycopg.connect(dsn, autocommit=True) as connection:
                    connection.execute("DROP EXTENSION pgrerank_native CASCADE")
            found, late = measure(dsn, workers, client, arguments)
            rounds |= found
            naps += late
    print(json.dumps(report(rounds, naps, arguments.timeout)))


if __name__ == "__main__":
    main()
