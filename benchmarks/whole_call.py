"""What a whole search costs, as corpus, pool and clients grow.

    python benchmarks/whole_call.py [--documents 10000,100000] [--seconds 3] [--clients 1,4,16]
        [--against COMMIT]

One embedded server with made-up vectors: 128 dimensions for recall, 128 token vectors of 128
dimensions in int8 and in bits, queries of 32. Clients are processes that ask as an end user does,
under row-level security; each waits for its answer before it asks again. Stages: recall alone,
with MaxSim over all candidates, and with bits before MaxSim over the best hundred. Beside them
pgvector's own ten nearest neighbours. No model takes part. Prints p50 and p95 in milliseconds and
calls a second; the last line is one JSON object. With --against the same is first asked of an
older commit, checked out aside, and each p50 stands beside that one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from psycopg.conninfo import make_conninfo
from synthetic import store_embeddings, store_parts, unit_vectors

from pgrerank import embedded
from pgrerank.install import schema
from pgrerank.terminal import document_progress, note, print_rows
from pgrerank.tokens import pack, pack_parts

DIMS, TOKENS, TOKEN_DIMS, QUERY_TOKENS = 128, 128, 128, 32
TOPICS, DISTINCT, QUERIES = 200, 1000, 100
BIT_TOP = 100
USER = "asks"
STAGES = {
    "dense": "{dense}",
    "dense, MaxSim": "{dense,maxsim}",
    f"dense, bits, MaxSim of {BIT_TOP}": "{dense,maxsim_bit,maxsim}",
}
ALONE = "pgvector alone, top 10"
SEARCH = (
    "SELECT id, score FROM pgrerank.{name}_search(NULL, query_embedding => %s::vector,"
    " query_tokens => %b, candidates => %s, stages => %s, timeout => '5 min', strict => true)"
)
NEAREST = "SELECT key FROM pgrerank.{name}_1_passages ORDER BY embedding <=> %s::halfvec LIMIT 10"


@dataclass(frozen=True)
class Case:
    """What is asked, of which reranker, by how many clients at a time."""

    documents: int
    what: str
    pool: int
    clients: int

    @property
    def statement(self) -> str:
        """Its SQL; see `parameters`."""
        return (NEAREST if self.what == ALONE else SEARCH).format(name=f"corpus_{self.documents}")

    def parameters(self, embedding: str, tokens: bytes) -> tuple[Any, ...]:
        """What its SQL takes for one query."""
        return (
            (embedding,)
            if self.what == ALONE
            else (embedding, tokens, self.pool, STAGES[self.what])
        )


def cases(sizes: Sequence[int], clients: Sequence[int]) -> Iterator[Case]:
    """All that is measured: every pool by one client, the usual ones by more."""
    for size in sizes:
        for count in clients:
            yield Case(size, ALONE, 10, count)
        for pool in (100, 1000, 10_000):
            for what in STAGES:
                for count in clients if pool < 10_000 else clients[:1]:
                    if pool <= size:
                        yield Case(size, what, pool, count)


def prepare(connection: psycopg.Connection) -> None:
    """Install, and register the models of which there are vectors only."""
    schema.install(connection)
    connection.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{USER}'")
    for name, kind, dims in (
        ("embedding", "embedding", DIMS),
        ("tokens", "late_interaction", TOKEN_DIMS),
    ):
        connection.execute("SELECT pgrerank.register_model(%s, %s, 'none', %s)", (name, kind, dims))


def fill(connection: psycopg.Connection, size: int, topics: np.ndarray) -> None:
    """A reranker over so many documents, stored where a worker would store them."""
    name, generator = f"corpus_{size}", np.random.default_rng(size)
    connection.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text)")
    connection.execute(f"GRANT SELECT ON {name} TO {USER}")
    connection.execute(
        "SELECT pgrerank.create_reranker(%s, %s, '{body}', embedding_model => 'embedding',"
        " late_interaction_model => 'tokens', maxsim_bit_top => %s)",
        (name, name, BIT_TOP),
    )
    [index] = connection.execute(
        "SELECT indexdef FROM pg_indexes WHERE tablename = %s AND indexdef ~ 'hnsw'",
        (f"{name}_1_passages",),
    ).fetchone()
    connection.execute(f"DROP INDEX pgrerank.{index.split()[2]}")
    connection.execute("SET session_replication_role = replica")  # no triggers: nothing to encode
    connection.execute(
        f"INSERT INTO {name} SELECT i, 'document ' || i FROM generate_series(0, %s) i", (size - 1,)
    )
    connection.execute("RESET session_replication_role")
    matrices = unit_vectors(generator, DISTINCT, TOKENS, TOKEN_DIMS)
    for tier, precision in (("tokens", "int8"), ("bits", "bit")):
        parts = [pack_parts(matrix, precision) for matrix in matrices]
        store_parts(connection, name, tier, ((key, parts[key % DISTINCT]) for key in range(size)))
    noise = unit_vectors(generator, size, DIMS)
    store_embeddings(connection, name, topics[generator.integers(TOPICS, size=size)] + noise)
    connection.execute("SET maintenance_work_mem = '1GB'")
    connection.execute(index)
    connection.execute("VACUUM ANALYZE")


def client(dsn: str, case: Case, seed: int, seconds: float, start: Any, taken: Any) -> None:
    """Ask for so long, in a process of its own; puts the times in seconds."""
    generator = np.random.default_rng([case.documents, seed])
    topics = unit_vectors(np.random.default_rng(0), TOPICS, DIMS)
    queries = [
        case.parameters(
            str((topics[generator.integers(TOPICS)] + unit_vectors(generator, DIMS)).tolist()),
            pack(unit_vectors(generator, QUERY_TOKENS, TOKEN_DIMS), "float16"),
        )
        for _ in range(QUERIES)
    ]
    times: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for query in queries[: 3 if case.pool > 1000 else 20]:  # touches pages, fills caches
            connection.execute(case.statement, query)
        start.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.perf_counter()
            connection.execute(case.statement, queries[len(times) % QUERIES]).fetchall()
            times.append(time.perf_counter() - started)
    taken.put(times)


def measure(dsn: str, case: Case, seconds: float) -> dict[str, float]:
    """p50 and p95 in milliseconds, and calls a second, of all clients together."""
    context = multiprocessing.get_context("spawn")
    start, taken = context.Barrier(case.clients), context.Queue()
    processes = [
        context.Process(target=client, args=(dsn, case, seed, seconds, start, taken), daemon=True)
        for seed in range(case.clients)
    ]
    for process in processes:
        process.start()
    times = [one for _ in processes for one in taken.get(timeout=300)]
    for process in processes:
        process.join()
    cuts = statistics.quantiles([*times, *times[:1]], n=20)
    return {
        "p50": 1000 * cuts[9],
        "p95": 1000 * cuts[18],
        "calls_per_second": len(times) / seconds,
    }


def ratios(found: dict[Case, dict[str, float]]) -> dict[str, float]:
    """How a call with MaxSim over 100 candidates, by one client, compares and grows."""
    p50 = {(c.documents, c.what, c.pool): m["p50"] for c, m in found.items() if c.clients == 1}
    what = "dense, MaxSim"
    sizes = sorted({case.documents for case in found})
    answer = {f"over_pgvector_{n}": p50[n, what, 100] / p50[n, ALONE, 10] for n in sizes}
    for small, large in ((100, 1000), (1000, 10_000)):
        if (sizes[-1], what, large) in p50:
            grown = p50[sizes[-1], what, large] / p50[sizes[-1], what, small]
            answer[f"pool_{large}_over_{small}"] = grown
    if len(sizes) > 1:
        first, last = sizes[0], sizes[-1]
        answer[f"corpus_{last}_over_{first}"] = p50[last, what, 100] / p50[first, what, 100]
    return answer


def likeness(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """By what a row of one commit is found among another's, whose stages have other names."""
    return row["documents"], row["pool"], row["clients"], row["what"].count(",")


def rows_of(commit: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What this benchmark printed at a commit, run with these arguments in a checkout of it."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        repository = Path(__file__).parent.parent
        git = ["git", "-C", str(repository), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(checkout), commit], check=True)
        try:
            script = checkout / "benchmarks" / "whole_call.py"
            done = subprocess.run(
                [sys.executable, str(script), *arguments],
                env=os.environ | {"PYTHONPATH": str(checkout)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return rows


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", default="10000,100000", help="corpora, by commas")
    parser.add_argument("--seconds", type=float, default=3, help="for each measurement")
    parser.add_argument("--clients", default="1,4,16", help="at a time, by commas, the first 1")
    parser.add_argument("--against", metavar="COMMIT", help="measured first, in a checkout of it")
    arguments = parser.parse_args()
    before: dict[tuple[int, int, int, int], float] = {}
    if arguments.against:
        same = [
            f"--{name}={getattr(arguments, name)}" for name in ("documents", "seconds", "clients")
        ]
        before = {likeness(row): row["p50"] for row in rows_of(arguments.against, same)}
    sizes, clients = (
        [int(number) for number in given.split(",")]
        for given in (arguments.documents, arguments.clients)
    )
    settings = {"shared_buffers": "3GB", "max_wal_size": "16GB", "autovacuum": "off"}
    with (
        embedded.start(settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        prepare(connection)
        for size in sizes:
            note(f"storing {size} documents")
            fill(connection, size, unit_vectors(np.random.default_rng(0), TOPICS, DIMS))
        engine = schema.maxsim_engine(connection)
        dsn = make_conninfo(server.dsn, user=USER, password=USER)
        found: dict[Case, dict[str, float]] = {}
        wanted = list(cases(sizes, clients))
        with document_progress("asking") as progress:
            for case in wanted:
                found[case] = measure(dsn, case, arguments.seconds)
                progress(len(found), len(wanted))
    rows = [vars(case) | measured for case, measured in found.items()]
    for row in rows if before else []:
        row["p50_before"] = before[likeness(row)]
    print_rows(
        ["documents", "stages", "candidates", "clients", "p50 ms", "p95 ms", "calls/s"]
        + ["p50 before"] * bool(before),
        [
            [row["documents"], row["what"], row["pool"], row["clients"]]
            + [f"{row[name]:.1f}" for name in list(row)[4:]]
            for row in rows
        ],
        as_json=False,
    )
    print(json.dumps({"engine": engine, "ratios": ratios(found), "rows": rows}))


if __name__ == "__main__":
    main()
