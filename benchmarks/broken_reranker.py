"""What one broken reranker of ten costs the others' ingest.

    python benchmarks/broken_reranker.py [--documents 400] [--rounds 3] [--faults lock,model]

An embedded server with ten rerankers by embeddings and words, over a table each, and one worker
whose role owns nothing. So many documents are inserted into each of nine tables; what is measured
is the time until all of them are stored. In turn the tenth is sound and idle, or broken in one of
FAULTS, with as many documents of its own that wait. Prints the medians of both; the last line is
one JSON object with the throughput beside each broken one over that beside a sound one, of pairs
of neighbours, and the least of these ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

sys.path.insert(0, str(Path(__file__).parents[1]))

from pgrerank import embedded
from pgrerank.errors import PgrerankError
from pgrerank.install import schema
from pgrerank.terminal import print_rows, work_progress
from tests.helpers.tiny_models import make as make_models
from tests.helpers.workers import wait_for, worker

ROLE = "pgrerank_worker"
TENTH, OTHERS = "t0", [f"t{number}" for number in range(1, 10)]
SPELT = "CREATE OR REPLACE FUNCTION spelt(body text) RETURNS text IMMUTABLE LANGUAGE sql RETURN "
FAULTS = {
    "column dropped": "ALTER TABLE t0_rows DROP COLUMN body CASCADE",
    "expression raises": f"{SPELT} (1 / length(left(body, 0)))::text",
    "model that can't be loaded": "SELECT pgrerank.alter_reranker('t0', embedding_model => 'gone')",
    "model that fails": "SELECT pgrerank.alter_reranker('t0', embedding_model => 'failing')",
    "right revoked": f"REVOKE ALL ON t0_rows FROM {ROLE}",
    "lock": "",
}
WAITING = (
    "SELECT EXISTS (SELECT FROM pgrerank.pending p"
    " WHERE p.failed_at IS NULL AND p.reranker <> 't0')"
)


def create(connection: psycopg.Connection, name: str) -> None:
    """A table and its reranker."""
    connection.execute(
        f"CREATE TABLE {name}_rows (id int PRIMARY KEY, number int,"
        " body text DEFAULT 'bread of flour, salt and water')"
    )
    connection.execute(f"GRANT SELECT, UPDATE ON {name}_rows TO {ROLE}")
    text = "spelt(body)" if name == TENTH else "body"
    connection.execute(
        "SELECT pgrerank.create_reranker(%s, %s, text_expression => %s,"
        " embedding_model => 'embedding')",
        (name, f"{name}_rows", text),
    )


def set_up(connection: psycopg.Connection, embedding: str) -> None:
    """Ten rerankers, a model that works, one that is not there, and one that refuses all."""
    schema.install(connection)
    connection.execute(f"CREATE ROLE {ROLE} LOGIN BYPASSRLS PASSWORD '{ROLE}'")
    connection.execute(f"GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw TO {ROLE}")
    connection.execute(f"SELECT pgrerank.grant_worker('{ROLE}')")
    for name, loader, source in (
        ("embedding", "sentence_transformer", embedding),
        ("gone", "sentence_transformer", "/nowhere"),
        ("failing", "http", "http://127.0.0.1:9/embed"),
    ):
        options = '{"dialect": "tei"}' if loader == "http" else None
        connection.execute(
            "SELECT pgrerank.register_model(%s, 'embedding', %s, 32, %s, options => %s)",
            (name, source, loader, options),
        )
    connection.execute(f"{SPELT} body")
    for name in [TENTH, *OTHERS]:
        create(connection, name)


def insert(connection: psycopg.Connection, names: list[str], documents: int) -> None:
    """New rows, in place of what was there, by one transaction."""
    with connection.transaction():
        for name in names:
            connection.execute(f"DELETE FROM {name}_rows")
            connection.execute(
                f"INSERT INTO {name}_rows (id, number) SELECT i, i FROM generate_series(1, %s) i",
                (documents,),
            )


def ingest(connection: psycopg.Connection, documents: int) -> float:
    """Documents a second of the nine."""
    begun = time.perf_counter()
    insert(connection, OTHERS, documents)
    while connection.execute(WAITING).fetchone() == (True,):
        time.sleep(0.02)
    return len(OTHERS) * documents / (time.perf_counter() - begun)


@contextlib.contextmanager
def broken(dsn: str, connection: psycopg.Connection, fault: str, documents: int) -> Iterator[None]:
    """The tenth with a fault, and documents that wait; it is made anew afterwards."""
    with psycopg.connect(dsn) as other:
        if fault == "lock":
            other.execute("LOCK TABLE t0_rows")
            insert(other, [TENTH], documents)
        else:
            connection.execute(FAULTS[fault])
            insert(connection, [TENTH], documents)
        yield
        other.rollback()
    connection.execute("SELECT pgrerank.drop_reranker('t0')")
    connection.execute("DROP TABLE t0_rows")
    connection.execute(f"{SPELT} body")
    create(connection, TENTH)


def measure(
    dsn: str, connection: psycopg.Connection, arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Throughput beside a sound and beside a broken one, in turn, by fault."""
    found: dict[str, list[tuple[float, float]]] = {fault: [] for fault in arguments.faults}
    ingest(connection, arguments.documents)
    with work_progress("measured", "rounds") as progress:
        for number in range(arguments.rounds):
            for fault, pairs in found.items():
                sound = ingest(connection, arguments.documents)
                with broken(dsn, connection, fault, arguments.documents):
                    pairs.append((sound, ingest(connection, arguments.documents)))
                progress(number + 1, arguments.rounds)
    return found


def main() -> None:
    """Set up, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=400, help="of each of the nine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--faults", default=",".join(FAULTS))
    arguments = parser.parse_args()
    arguments.faults = arguments.faults.split(",")
    if unknown := set(arguments.faults) - set(FAULTS):
        raise PgrerankError(f"no such fault: {unknown}; there are {', '.join(FAULTS)}")
    with (
        tempfile.TemporaryDirectory(prefix="pgrerank-broken-") as name,
        embedded.start() as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        set_up(connection, make_models(folder)["embedding"])
        dsn = make_conninfo(server.dsn, user=ROLE, password=ROLE)
        with worker(dsn, folder):
            wait_for(connection, "s.pending = 0")
            found = measure(server.dsn, connection, arguments)
    ratios = {
        fault: round(statistics.median(beside / sound for sound, beside in pairs), 3)
        for fault, pairs in found.items()
    }
    print_rows(
        ["the tenth", "beside a sound one", "beside it, documents/s", "ratio"],
        [
            [
                *(fault, *(f"{statistics.median(one):.0f}" for one in zip(*pairs, strict=True))),
                f"{ratios[fault]:.3f}",
            ]
            for fault, pairs in found.items()
        ],
        as_json=False,
    )
    print(json.dumps({"least": min(ratios.values()), "ratios": ratios}))


if __name__ == "__main__":
    main()
