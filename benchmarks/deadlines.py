"""Whether searches keep their deadline when nothing that they read is in memory.

    python benchmarks/deadlines.py [--documents 100000] [--calls 1000] [--timeout 50] [--cold]

One embedded server with next to no buffers and made-up vectors (whole_call.py has which), asked for
recall and MaxSim over 1,000 candidates with a timeout of so many milliseconds. With --cold the
operating system is told to forget all that it has read before each call, which wants root on Linux.
Prints how long calls took; the last line is one JSON object, which has besides how many were late
by more than 100 ms, which stage ranked last, and which reasons were given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psycopg
from synthetic import unit_vectors
from whole_call import DIMS, QUERY_TOKENS, TOKEN_DIMS, TOPICS, fill, prepare

from pgrerank import embedded
from pgrerank.terminal import document_progress, note, print_rows
from pgrerank.tokens import pack

CANDIDATES = 1000
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
STORING = {"shared_buffers": "2GB", "max_wal_size": "16GB", "autovacuum": "off"}
ASKING = {"shared_buffers": "1MB", "autovacuum": "off"}
SEARCH = (
    "SELECT id, stage, reason FROM pgrerank.corpus_{documents}_search(NULL,"
    " query_embedding => %s::vector, query_tokens => %b, candidates => %s, timeout => %s,"
    " strict => false)"
)


def open_session(server: embedded.EmbeddedServer) -> psycopg.Connection:
    """An autocommit session as the server's superuser."""
    return psycopg.connect(server.dsn, autocommit=True)


def ask(
    connection: psycopg.Connection, arguments: argparse.Namespace, topics: np.ndarray
) -> tuple[list[float], Counter[str], Counter[str]]:
    """The milliseconds of all calls, the stages that ranked last, and the reasons given."""
    generator = np.random.default_rng(1)
    statement = SEARCH.format(documents=arguments.documents)
    times: list[float] = []
    stages: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with document_progress("asking") as progress:
        for call in range(arguments.calls):
            vector = topics[generator.integers(TOPICS)] + unit_vectors(generator, DIMS)
            tokens = pack(unit_vectors(generator, QUERY_TOKENS, TOKEN_DIMS), "float16")
            if arguments.cold:
                DROP_CACHES.write_text("3")
            begun = time.perf_counter()
            rows = connection.execute(
                statement,
                (str(vector.tolist()), tokens, CANDIDATES, f"{arguments.timeout} ms"),
            ).fetchall()
            times.append(1000 * (time.perf_counter() - begun))
            stages[rows[0][1] if rows else "none"] += 1
            reasons[rows[0][2] or "whole" if rows else "no rows"] += 1
            progress(call + 1, arguments.calls)
    return times, stages, reasons


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--timeout", type=float, default=50, help="of a call, in milliseconds")
    parser.add_argument("--cold", action="store_true", help="read from the disk; wants root")
    arguments = parser.parse_args()
    topics = unit_vectors(np.random.default_rng(0), TOPICS, DIMS)
    with tempfile.TemporaryDirectory(prefix="pgrerank-deadlines-") as folder:
        Path(folder).chmod(0o755)  # as root, the server has another user
        data = Path(folder) / "data"
        with embedded.start(data, settings=STORING) as server, open_session(server) as connection:
            prepare(connection)
            note(f"storing {arguments.documents} documents")
            fill(connection, arguments.documents, topics)
        with embedded.start(data, settings=ASKING) as server, open_session(server) as connection:
            times, stages, reasons = ask(connection, arguments, topics)
    cuts = statistics.quantiles([*times, *times[:1]], n=100)
    found = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "longest": max(times)}
    print_rows(
        ["timeout ms", *found],
        [[f"{arguments.timeout:g}", *(f"{value:.1f}" for value in found.values())]],
        as_json=False,
    )
    late = sum(took > arguments.timeout + 100 for took in times)
    outcome = {"late_by_100": late, "stages": stages, "reasons": reasons}
    print(json.dumps(found | outcome))


if __name__ == "__main__":
    main()
