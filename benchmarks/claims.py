"""Whether a long queue slows claims down, and whether dead rows pile up in it.

    python benchmarks/claims.py [--documents 1000000] [--claimers 3] [--keep-snapshot]

An embedded server, with autovacuum as Postgres has it, and a reranker over so many short documents,
all of which are enqueued. Claimers claim as a worker does, and take what they have claimed off the
queue as a worker does with what needs no model; nothing is encoded. With --keep-snapshot a
transaction that has begun before is open all the while, so that no dead row can be taken away.

Prints for each tenth of the queue the p50 and p95 of a claim, what a claim costs the server's
processor, dead rows, and the sizes of the queue and of its indexes; the last line is one JSON
object, with the p50 of the slowest tenth over the first's, that of the last, the same of the time
on the processor, and the most dead rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from pgrerank import embedded
from pgrerank.install import schema
from pgrerank.terminal import document_progress, note, print_rows
from pgrerank.worker.ingest import LARGEST_CLAIM

TENTHS = 10
CLAIM = "SELECT reranker, generation, keys, tickets FROM pgrerank.claim(%s)"
SIZES = (
    "SELECT pg_stat_get_dead_tuples(c.oid), pg_relation_size(c.oid), pg_indexes_size(c.oid)"
    " FROM pg_class c WHERE c.oid = 'pgrerank.pending'::regclass"
)


@dataclass
class Tenth:
    """What was measured while a tenth of the queue was claimed."""

    milliseconds: list[float] = field(default_factory=list)
    processor: float = 0.0
    dead: int = 0
    table: int = 0
    indexes: int = 0


class Queue:
    """Claims what is enqueued, and says how long that took."""

    def __init__(self, dsn: str, documents: int) -> None:
        self.dsn, self.documents = dsn, documents
        self.claimed = 0
        self.tenths = [Tenth() for _ in range(TENTHS)]
        self._lock = threading.Lock()
        self.empty = threading.Event()

    def _tenth(self) -> Tenth:
        return self.tenths[min(TENTHS - 1, self.claimed * TENTHS // self.documents)]

    def claim_all(self) -> None:
        """Claim and finish until nothing is left."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while True:
                spent, begun = processor_seconds(connection), time.perf_counter()
                claim = connection.execute(CLAIM, (LARGEST_CLAIM,)).fetchone()
                taken = time.perf_counter() - begun
                spent = processor_seconds(connection) - spent
                if claim is None:
                    return
                connection.execute("SELECT pgrerank.finish(%s, %s, %s, %s)", claim)
                with self._lock:
                    self._tenth().milliseconds.append(1000 * taken)
                    self._tenth().processor += spent
                    self.claimed += len(claim[2])

    def watch(self) -> None:
        """Look at dead rows and sizes until told that the queue is empty."""
        with (
            psycopg.connect(self.dsn, autocommit=True) as connection,
            document_progress("claimed") as progress,
        ):
            while not self.empty.wait(0.5):
                dead, table, indexes = connection.execute(SIZES).fetchone() or (0, 0, 0)
                tenth = self._tenth()
                tenth.dead = max(tenth.dead, dead)
                tenth.table, tenth.indexes = table, indexes
                progress(self.claimed, self.documents)


def processor_seconds(connection: psycopg.Connection[Any]) -> float:
    """How long a session's process has had a processor."""
    path = Path(f"/proc/{connection.info.backend_pid}/schedstat")
    return int(path.read_text().split()[0]) / 1e9


def fill(connection: psycopg.Connection[Any], documents: int) -> None:
    """A reranker, and its documents, enqueued by the statement that inserts them."""
    schema.install(connection)
    connection.execute("SELECT pgrerank.register_model('model', 'embedding', 'none', 8)")
    connection.execute("CREATE TABLE documents (id bigint PRIMARY KEY, body text NOT NULL)")
    connection.execute(
        "SELECT pgrerank.create_reranker('documents', 'documents', '{body}',"
        " embedding_model => 'model')"
    )
    begun = time.perf_counter()
    connection.execute(
        "INSERT INTO documents SELECT i, 'document ' || i FROM generate_series(1, %s) i",
        (documents,),
    )
    note(f"enqueued {documents} documents in {time.perf_counter() - begun:.1f} s")


@contextlib.contextmanager
def snapshot(dsn: str) -> Any:
    """A transaction that might still look at all that there is now."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT FROM pgrerank.pending LIMIT 1")
        yield


def drain(dsn: str, documents: int, claimers: int) -> list[Tenth]:
    """Claim everything, side by side."""
    queue = Queue(dsn, documents)
    watching = threading.Thread(target=queue.watch)
    claiming = [threading.Thread(target=queue.claim_all) for _ in range(claimers)]
    for thread in (watching, *claiming):
        thread.start()
    for thread in claiming:
        thread.join()
    queue.empty.set()
    watching.join()
    return queue.tenths


def report(tenths: list[Tenth]) -> dict[str, float]:
    """Print what was measured, and return the figures."""
    cuts = [statistics.quantiles(one.milliseconds, n=20) for one in tenths]
    spent = [1000 * one.processor / len(one.milliseconds) for one in tenths]
    rows = [
        [
            *(str(number), f"{cut[9]:.2f}", f"{cut[18]:.2f}", f"{own:.2f}", str(one.dead)),
            *(f"{size / 2**20:.0f}" for size in (one.table, one.indexes)),
        ]
        for number, (one, cut, own) in enumerate(zip(tenths, cuts, spent, strict=True), 1)
    ]
    header = ["tenth", "p50 ms", "p95 ms", "processor ms", "dead rows", "table MiB", "indexes MiB"]
    print_rows(header, rows, as_json=False)
    p50 = [cut[9] for cut in cuts]
    return {
        "p50_ms": round(statistics.median(p50), 3),
        "slowest_over_first": round(max(p50) / p50[0], 3),
        "last_over_first": round(p50[-1] / p50[0], 3),
        "processor_slowest_over_first": round(max(spent) / spent[0], 3),
        "processor_last_over_first": round(spent[-1] / spent[0], 3),
        "most_dead": max(one.dead for one in tenths),
        "indexes_mib": round(max(one.indexes for one in tenths) / 2**20),
    }


def main() -> None:
    """Fill, claim, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--claimers", type=int, default=3, help="sessions that claim side by side")
    parser.add_argument("--keep-snapshot", action="store_true", help="have an old transaction open")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(embedded.start())
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            fill(connection, arguments.documents)
        if arguments.keep_snapshot:
            stack.enter_context(snapshot(server.dsn))
        begun = time.perf_counter()
        tenths = drain(server.dsn, arguments.documents, arguments.claimers)
        took = time.perf_counter() - begun
        print(
            json.dumps(report(tenths) | {"documents_a_second": round(arguments.documents / took)})
        )


if __name__ == "__main__":
    main()
