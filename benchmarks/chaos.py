"""Whether anything breaks or stalls while everything is killed, stopped, cut off and slowed down.

    python benchmarks/chaos.py [--seconds 60] [--seed N] [--clients 16] [--workers 2]

On an embedded server, clients search as tenants behind row-level security, and insert, update,
delete, truncate, roll back and change rerankers, while workers are killed, stopped and restarted,
their network is cut, refused and slowed by a proxy of our own, and Postgres and its backends are
killed. Afterwards an independent checker compares what is there with what must be: each live
document has exactly its current vectors, nothing is pending for ever, no answer came later than
its deadline and 100 ms (less what backend and client waited for a processor), nobody saw
a row of another tenant, and memory stayed bounded.

Prints what was done and what is wrong. The last line is one JSON object, with `violations`, `kills`
(and stops), `searches`, `writes` and `seed`, which makes the same clients and faults again. The
exit status is 1 if there were violations.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos_checker import check_searches, check_table, check_vectors, settle
from chaos_clients import ROLE, TENANTS, Client, Lag, Owner
from chaos_faults import Faults, Worker, start_server

from pgrerank.install import schema
from pgrerank.terminal import note
from tests.helpers.tiny_models import make as make_models

KILLS = ("kill", "stop", "restart", "kill backend", "kill server", "end sessions")


def set_up(connection: psycopg.Connection[Any], models: dict[str, str]) -> None:
    """Two sources with rerankers; one has tenants, whom a role without rights searches for."""
    schema.install(connection)
    connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE}'")
    for name, kind, dims in (
        ("embedding", "embedding", 32),
        ("tokens", "late_interaction", 32),
        ("reranker", "cross_encoder", None),
    ):
        loader = "cross_encoder" if kind == "cross_encoder" else "sentence_transformer"
        connection.execute(
            "SELECT pgrerank.register_model(%s, %s, %s, %s, %s)",
            (name, kind, models[name], dims, loader),
        )
    for table in ("documents", "notes"):
        connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text, tenant int)")
        connection.execute(
            "SELECT pgrerank.create_reranker(%s, %s, '{body}', embedding_model => 'embedding',"
            " late_interaction_model => 'tokens', cross_encoder_model => 'reranker')",
            (table, table),
        )
    connection.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    connection.execute(
        "CREATE POLICY own ON documents USING (tenant = current_setting('app.tenant')::int)"
    )
    connection.execute(f"GRANT SELECT ON documents TO {ROLE}")
    connection.execute(
        "INSERT INTO documents SELECT i, 'bread of flour and water ' || i, i %% %s"
        " FROM generate_series(1, 200) i",
        (TENANTS,),
    )


def share_of_whole(clients: list[Client], events: list[float]) -> tuple[float, float]:
    """Shares of searches that were whole: of all, and of those a second or more after a fault."""
    searched = [one for client in clients for one in client.searched]
    calm = [
        whole
        for begun, _, whole in searched
        if (place := bisect.bisect(events, begun)) == 0 or begun - events[place - 1] > 1
    ]
    wholes = [whole for _, _, whole in searched]
    return tuple(round(sum(some) / max(1, len(some)), 4) for some in (wholes, calm))  # type: ignore[return-value]


def latest(clients: list[Client]) -> float:
    """The longest search in seconds."""
    return max((ended - begun for c in clients for begun, ended, _ in c.searched), default=0.0)


class Campaign:
    """Clients and faults on one server, and what has gone wrong."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.violations: Counter[str] = Counter()

    def violate(self, what: str) -> None:
        """Note a violation; the kind is what stands before the colon."""
        kind = what.split(":")[0]
        self.violations[kind] += 1
        if self.violations[kind] <= 20:
            note(f"VIOLATION {what}")

    def run(self) -> dict[str, Any]:
        """The whole campaign; returns its figures."""
        seed = str(self.arguments.seed)
        self.folder.chmod(0o755)
        self.models = make_models(self.folder)
        server = start_server(self.folder / "postgres")
        workers: list[Worker] = []
        faults = None
        try:
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                set_up(connection, self.models)
            for number in range(1, self.arguments.workers + 1):
                workers.append(Worker(number, server.dsn, self.folder, seed))
            for worker in workers:
                worker.process.wait_until_ready()
            with psycopg.connect(server.dsn, autocommit=True) as connection:
                settle(connection, self.violate)
            faults = Faults(seed, server, workers, self.violate)
            clients = self._clients(server.dsn, seed)
            self._last(clients, faults)
            return self._verdict(faults, clients)
        finally:
            for worker in workers:
                worker.process.close()
            (faults.server if faults else server).stop()

    def _clients(self, dsn: str, seed: str) -> list[Client]:
        lag = Lag()
        owner = Owner(0, seed, dsn, lag, self.violate)
        others = range(1, self.arguments.clients)
        return [owner, *(Client(n, seed, dsn, lag, self.violate) for n in others)]

    def _last(self, clients: list[Client], faults: Faults) -> None:
        for thread in (*clients, faults):
            thread.start()
        time.sleep(self.arguments.seconds)
        for client in clients:
            client.ending.set()
        for client in clients:
            client.join(60)
            if client.is_alive():
                self.violate(f"hang: {client.name} does not end")
        faults.ending.set()
        faults.join(120)

    def _verdict(self, faults: Faults, clients: list[Client]) -> dict[str, Any]:
        self._check(faults.server.dsn, clients)
        counts = sum((client.counts for client in clients), Counter())
        for reason, times in sum((c.reasons for c in clients), Counter()).most_common(20):
            note(f"{times:6} degraded at {reason}")
        whole, calm = share_of_whole(clients, faults.events)
        return {
            "violations": sum(self.violations.values()),
            "kinds": dict(self.violations),
            "kills": sum(faults.counts[name] for name in KILLS),
            "faults": dict(faults.counts),
            "searches": counts["searches"],
            "whole": whole,
            "whole_after_1_s": calm,
            "longest_s": round(latest(clients), 3),
            "writes": counts["writes"],
            "counts": dict(counts),
            "seconds": self.arguments.seconds,
            "clients": len(clients),
            "seed": self.arguments.seed,
        }

    def _check(self, dsn: str, clients: list[Client]) -> None:
        given = clients[1].model
        given.texts |= {key: f"bread of flour and water {key}" for key in range(1, 201)}
        embedder = Path(self.models["embedding"])
        with psycopg.connect(dsn, autocommit=True) as connection:
            settle(connection, self.violate)
            for table, own in (("documents", clients[1:]), ("notes", clients[:1])):
                models = [client.model for client in own]
                texts = check_table(connection, table, models, self.violate)
                check_vectors(connection, table, texts, embedder, self.violate)
            check_searches(connection, self.violate)


def main() -> int:
    """Run one campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--clients", type=int, default=16, choices=range(2, 65), metavar="2..64")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    note(f"seed {arguments.seed}")
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # of workers: their threads would wait for each other busily
    )
    with tempfile.TemporaryDirectory(prefix="pgrerank-chaos-") as folder:
        found = Campaign(arguments, Path(folder)).run()
    print(json.dumps(found))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
