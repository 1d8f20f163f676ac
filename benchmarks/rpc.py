"""What the way to the worker costs: one call with 100 candidates and a scorer that does nothing.

    python benchmarks/rpc.py [--calls 2000] [--dsn DSN]

Prints p50 and p95 of each client, the native one and dblink, on an open connection, and with a new
connection each time; and, as the floor of dblink, its own blocking call, which heeds no deadline.
Then how long a search with a timeout of 300 ms takes while the worker is stopped or killed, in
sessions with and without an open connection. The last line is one JSON object, whose
`dblink_over_native` is the ratio of their p50 on an open connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from pgrerank.install import schema
from pgrerank.wire.server import WireServer
from pgrerank.wire.types import Rows, Session
from pgrerank.worker.presence import Address, Load, Presence

PASSWORD = "benchmark"
TIMEOUT_MS = 300
CALL = (
    "SELECT pgrerank._ask_worker(pgrerank_request, clock_timestamp() + interval '5 s') FROM request"
)
BLOCKING = (
    "SELECT * FROM request, dblink('blocking',"
    ' format(\'{"id": 1, "request": %s}\', pgrerank_request)) r (answer jsonb)'
)


async def answer(statement: str, _session: Session) -> Rows:
    """Scores for as many documents as were sent, at no cost."""
    if statement == "PING":
        return Rows(("answer",), [("{}",)], "SELECT 1")
    envelope = json.loads(statement)
    scores = [0.5] * len(envelope["request"]["documents"])
    return Rows(("answer",), [(json.dumps({"id": envelope["id"], "scores": scores}),)], "SELECT 1")


def serve(dsn: str, port: multiprocessing.Queue[int]) -> None:
    """The wire server and the heartbeat of a worker, in a process that can be stopped."""

    async def main() -> None:
        server = WireServer(answer, user="pgrerank", password=PASSWORD, ssl=None)
        await server.start("127.0.0.1", 0)
        address = Address("127.0.0.1", server.port, 64, PASSWORD, {})
        await Presence(dsn, address, lambda: Load([], 0, server.connections, {})).begin()
        port.put(server.port)
        await asyncio.Event().wait()

    asyncio.run(main())


def milliseconds(deed: Callable[[], object], times: int) -> list[float]:
    """How long each of so many deeds took."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        deed()
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def quantiles(taken: list[float]) -> tuple[float, float]:
    """p50 and p95."""
    cuts = statistics.quantiles(taken, n=20)
    return cuts[9], cuts[18]


@contextlib.contextmanager
def database(dsn: str | None) -> Iterator[str]:
    """The database asked for, or a fresh embedded server."""
    if dsn:
        yield dsn
    else:
        from pgrerank import embedded

        with embedded.start() as server:
            yield server.dsn


def set_up(connection: psycopg.Connection) -> None:
    """Pgrerank, the native client where it can be had, and a request of 100 short documents."""
    schema.install(connection)
    connection.execute(
        "CREATE TEMPORARY TABLE request AS SELECT json_build_object('call', 'cross_encode',"
        " 'documents', (SELECT json_agg('document number ' || i) FROM generate_series(1, 100) i)"
        ")::text AS pgrerank_request"
    )


def start_worker(connection: psycopg.Connection, dsn: str) -> multiprocessing.Process:
    """A worker whose address `set_worker` knows, too."""
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    process = multiprocessing.Process(target=serve, args=(dsn, port), daemon=True)
    process.start()
    connection.execute(
        "SELECT pgrerank.set_worker('127.0.0.1', %s, %s)", (port.get(timeout=30), PASSWORD)
    )
    return process


def outage(dsn: str, open_session: psycopg.Connection, calls: int) -> dict[str, float]:
    """Worst time of calls with a deadline, in an open session and in new ones."""
    call = (
        'SELECT pgrerank._ask_worker(\'{"call": "cross_encode", "documents": []}\','
        f" clock_timestamp() + interval '{TIMEOUT_MS} ms')"
    )

    def attempt(connection: psycopg.Connection) -> None:
        with contextlib.suppress(psycopg.Error):
            connection.execute(call)

    def fresh() -> list[float]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            return milliseconds(lambda: attempt(connection), 1)

    return {
        "open_session": max(milliseconds(lambda: attempt(open_session), calls)),
        "new_session": max(fresh()[0] for _ in range(calls)),
    }


def latency(
    connection: psycopg.Connection, calls: dict[str, tuple[str, int]]
) -> dict[str, dict[str, float]]:
    """p50 and p95 of each statement, made so many times."""
    found = {}
    for name, (statement, times) in calls.items():
        p50, p95 = quantiles(milliseconds(lambda s=statement: connection.execute(s), times))
        found[name] = {"p50_ms": round(p50, 3), "p95_ms": round(p95, 3)}
        print(f"{name:24} p50 {p50:7.3f} ms   p95 {p95:7.3f} ms")
    return found


def measure(client: str, connection: psycopg.Connection, dsn: str, calls: int) -> dict[str, object]:
    """One client with a worker of its own, which does not survive it."""
    process = start_worker(connection, dsn)
    asked = {
        client: (CALL, calls),
        f"{client}, new connection": (
            f"SELECT pgrerank._disconnect(); {CALL}",
            max(calls // 20, 2),
        ),
    }
    if client == "dblink":
        connection.execute("SELECT dblink_connect('blocking', 'pgrerank_worker')")
        asked["blocking"] = BLOCKING, calls
    found: dict[str, object] = {**latency(connection, asked)}
    for name, number in (("stopped", signal.SIGSTOP), ("killed", signal.SIGKILL)):
        connection.execute(CALL)
        os.kill(process.pid or 0, number)
        worst = {
            key: round(value)
            for key, value in outage(dsn, connection, max(calls // 200, 2)).items()
        }
        found[f"{client}, {name}"] = worst
        print(f"{client}, worker {name}: the worst with a deadline of {TIMEOUT_MS} ms: {worst}")
        os.kill(process.pid or 0, signal.SIGCONT)
        time.sleep(0.2)
    process.join()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--dsn", help="a scratch database; by default an embedded server")
    arguments = parser.parse_args()
    with (
        database(arguments.dsn) as dsn,
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        connection.execute("SET search_path = public, pgrerank")
        set_up(connection)
        results: dict[str, Any] = {}
        if connection.execute("SELECT has_native_client()").fetchone() == (True,):
            results |= measure("native", connection, dsn, arguments.calls)
            connection.execute("DROP EXTENSION pgrerank_native")
        results |= measure("dblink", connection, dsn, arguments.calls)
    if "native" in results:
        ratio = results["dblink"]["p50_ms"] / results["native"]["p50_ms"]
        results["dblink_over_native"] = round(ratio, 2)
    json.dump(results, sys.stdout)
    print()


if __name__ == "__main__":
    main()
