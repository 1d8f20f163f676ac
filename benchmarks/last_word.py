"""What signals, groups and diversity cost a search, side by side with a search without them.

    python benchmarks/last_word.py [--documents 20000] [--candidates 1000] [--rounds 200]

One embedded server with made-up vectors of 384 dimensions, three columns that signals read and one
of groups. Dense recall of all candidates by a query vector, so that no worker takes part; the
variants take turns, query by query. Milliseconds of a whole call, p50 and p95, and what each
variant takes more than the plain search, by medians of the differences. Beside them what nothing of
that can do without: to read the candidates' columns, and the embeddings of the first hundred, by
their keys, right after a plain search. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import psycopg
from psycopg.types.json import Jsonb
from synthetic import store_embeddings, unit_vectors

from pgrerank import embedded
from pgrerank.install import schema
from pgrerank.terminal import document_progress, note, print_rows

DIMS, TOPICS, SOURCES = 384, 200, 50
SIGNALS = {
    "published": {"decay": "90 days", "weight": 0.2},
    "votes": {"log": True, "weight": 0.1},
    "pinned": {"equals": True, "boost": 1},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "signals": {"signals": Jsonb(SIGNALS)},
    "groups": {"group_by": "source"},
    "diversity": {"diversity": 0.3, "duplicate_threshold": 0.95},
}
VARIANTS["together"] = {name: value for one in VARIANTS.values() for name, value in one.items()}
SEARCH = (
    "SELECT count(*) FROM pgrerank.documents_search(NULL, query_embedding => %(query)s::vector,"
    " candidates => %(candidates)s, stages => '{{dense}}'{})"
)
# By an expression that no index serves: HNSW would yield hnsw.ef_search of them.
NEAREST = """
    CREATE TEMPORARY TABLE nearest AS
    SELECT array_agg(n.key) AS keys, (array_agg(n.key))[:100] AS first
    FROM (SELECT s.key FROM pgrerank.documents_1_passages s
        ORDER BY (s.embedding <=> %s::halfvec) + 0 LIMIT %s) n"""
READ = """
    SELECT (SELECT row(array_agg(d.published), array_agg(d.votes), array_agg(d.pinned),
            array_agg(d.source))
        FROM documents d WHERE d.id = ANY ((SELECT n.keys FROM nearest n)::bigint[])) IS NULL,
        (SELECT array_agg(s.embedding) FROM pgrerank.documents_1_passages s
        WHERE s.key = ANY ((SELECT n.first FROM nearest n)::bigint[])) IS NULL"""


def fill(connection: psycopg.Connection, documents: int) -> np.ndarray:
    """Store documents where a worker would store them; returns the topics that they are about."""
    generator = np.random.default_rng(0)
    topics = unit_vectors(generator, TOPICS, DIMS)
    connection.execute(
        "CREATE TABLE documents (id bigint PRIMARY KEY, body text, source text,"
        " published timestamptz, votes int, pinned boolean)"
    )
    connection.execute(
        "SELECT pgrerank.register_model('embedding', 'embedding', 'none', %s)", (DIMS,)
    )
    connection.execute(
        "SELECT pgrerank.create_reranker('documents', 'documents', '{body}',"
        " embedding_model => 'embedding')"
    )
    connection.execute("SET session_replication_role = replica")  # no triggers: nothing to encode
    connection.execute(
        "INSERT INTO documents SELECT i, repeat('word ', 100), 'source ' || hashint4(i) %% %s,"
        " now() - i * interval '1 hour', hashint4(-i) %% 1000, i %% 100 = 0"
        " FROM generate_series(0, %s) i",
        (SOURCES, documents - 1),
    )
    noise = unit_vectors(generator, documents, DIMS)
    vectors = topics[generator.integers(TOPICS, size=documents)] + noise
    store_embeddings(connection, "documents", vectors)
    connection.execute("RESET session_replication_role")
    connection.execute("VACUUM ANALYZE")
    return topics


def measure(
    connection: psycopg.Connection, topics: np.ndarray, candidates: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each variant by round, after ten rounds that are not counted."""
    generator = np.random.default_rng(1)
    spent: dict[str, list[float]] = {name: [] for name in (*VARIANTS, "reading")}

    def timed(name: str, statement: str, given: dict[str, Any]) -> None:
        started = time.perf_counter()
        connection.execute(statement, given).fetchone()
        spent[name].append(1000 * (time.perf_counter() - started))

    with document_progress("searching") as progress:
        for number in range(-10, rounds):
            vector = topics[generator.integers(TOPICS)] + unit_vectors(generator, DIMS)
            given = {"query": str(vector.tolist()), "candidates": candidates}
            connection.execute("DROP TABLE IF EXISTS nearest")
            connection.execute(NEAREST, (given["query"], candidates))
            for name, arguments in VARIANTS.items():
                named = "".join(f", {argument} => %({argument})s" for argument in arguments)
                timed(name, SEARCH.format(named), given | arguments)
                if name == "plain":  # the caches are as recall leaves them to signals
                    timed("reading", READ, {})
            progress(number + 11, rounds + 10)
    return {name: times[10:] for name, times in spent.items()}


def main() -> None:
    """Fill, search, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    with (
        embedded.start(settings={"shared_buffers": "1GB", "autovacuum": "off"}) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        schema.install(connection)
        note(f"storing {arguments.documents} documents")
        topics = fill(connection, arguments.documents)
        spent = measure(connection, topics, arguments.candidates, arguments.rounds)
    rows = []
    for name, times in spent.items():
        base = [0.0] * len(times) if name == "reading" else spent["plain"]
        more = statistics.median(one - before for one, before in zip(times, base, strict=True))
        rows.append((name, statistics.median(times), float(np.percentile(times, 95)), more))
    print_rows(
        ["variant", "p50 ms", "p95 ms", "ms more"],
        [(name, *(f"{value:.2f}" for value in values)) for name, *values in rows],
        as_json=False,
    )
    print(
        json.dumps(
            vars(arguments)
            | {name: {"p50": p50, "p95": p95, "more": more} for name, p50, p95, more in rows}
        )
    )


if __name__ == "__main__":
    main()
