"""What a search of one partition costs beside that of a lone table of its size.

    python benchmarks/partitions.py [--partitions 16] [--documents 10000] [--calls 300]

One embedded server with made-up words and vectors of 128 dimensions: a table of so many partitions
of so many documents each, under one reranker whose side tables are partitioned likewise (`split`)
and one whose are not (`whole`), and a table that has the first partition's documents alone
(`lone`). All are filled as a worker fills them. Each is asked by turns for ten documents, by its
vectors and its words, with a filter that names the first partition, and `split` and `whole` without
a filter. Then a partition is dropped. The last line is one JSON object: milliseconds at the median,
their ratios, and the seconds from the DROP until its vectors are gone. No model takes part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
from psycopg.rows import class_row
from synthetic import unit_vectors

from pgrerank import embedded
from pgrerank.install import schema
from pgrerank.terminal import document_progress, print_rows
from pgrerank.worker.claim import Claim

DIMS, TOPICS, WORDS, LENGTH = 128, 200, 20_000, 40
FILTER = json.dumps({"tenant": 0})
SIDES = {"lone": FILTER, "split": FILTER, "whole": FILTER, "split, all": None, "whole, all": None}
SEARCH = (
    "SELECT count(*) FROM pgrerank.{}_search(%s, query_embedding => %s::vector, filter => %s,"
    " stages => '{{dense,lexical}}', timeout => '1 min')"
)
STORE = (
    "SELECT pgrerank.store(%s, %s, %s, %s, %s, passage_keys => %s,"
    " passages => array_fill(1, ARRAY[%s]), passage_hashes => %s, cut_hashes => %s,"
    " embedding_places => ARRAY(SELECT generate_series(1, %s)), embeddings => %s::real[])"
)


def texts(generator: np.random.Generator, count: int) -> list[str]:
    """Texts of made-up words, as frequent as a language's are."""
    ranks = np.minimum(generator.zipf(1.3, (count, LENGTH)), WORDS)
    return [" ".join(f"w{rank}" for rank in row) for row in ranks.tolist()]


def fill(connection: psycopg.Connection, partitions: int, documents: int) -> None:
    """Both tables with their rerankers, and all that is stored of them."""
    columns = "tenant int, id int, body text, PRIMARY KEY (tenant, id)"
    connection.execute(f"CREATE TABLE lone ({columns})")
    connection.execute(f"CREATE TABLE parts ({columns}) PARTITION BY LIST (tenant)")
    generator = np.random.default_rng(0)
    for tenant in range(partitions):
        connection.execute(
            f"CREATE TABLE parts_{tenant} PARTITION OF parts FOR VALUES IN ({tenant})"
        )
        with connection.cursor().copy("COPY parts FROM STDIN") as copy:
            for key, body in enumerate(texts(generator, documents)):
                copy.write_row((tenant, key, body))
    connection.execute("INSERT INTO lone SELECT * FROM parts_0")
    connection.execute("ANALYZE")
    connection.execute("SELECT pgrerank.register_model('model', 'embedding', 'none', %s)", (DIMS,))
    for name, table, partitioned in (
        ("lone", "lone", None),
        ("split", "parts", None),
        ("whole", "parts", False),
    ):
        connection.execute(
            "SELECT pgrerank.create_reranker(%s, %s, '{body}', embedding_model => 'model',"
            " partitioned => %s, text_search_config => 'simple')",
            (name, table, partitioned),
        )
        encode(connection, name)
    connection.execute("VACUUM ANALYZE")


def encode(connection: psycopg.Connection, name: str) -> None:
    """Store made-up vectors of all that waits: of a document the same in every reranker."""
    topics = unit_vectors(np.random.default_rng(1), TOPICS, DIMS)
    cursor = connection.cursor(row_factory=class_row(Claim))
    [waiting] = connection.execute("SELECT count(*) FROM pgrerank.pending").fetchone()
    done = 0
    with document_progress(f"storing {name}") as progress:
        while claim := cursor.execute("SELECT * FROM pgrerank.claim(1000, %s)", (name,)).fetchone():
            keys = [document.key for document in claim.documents]
            seeds = [[int(part) for part in key.strip("()").split(",")] for key in keys]
            vectors = [
                topics[seed[1] % TOPICS] + unit_vectors(np.random.default_rng(seed), DIMS)
                for seed in seeds
            ]
            hashes = [document.content_hash for document in claim.documents]
            tickets = [document.ticket for document in claim.documents]
            connection.execute(
                STORE,
                (
                    *(name, claim.generation, keys, tickets, hashes, keys, len(keys)),
                    *(hashes, hashes, len(keys), np.concatenate(vectors).tolist()),
                ),
            )
            done += len(keys)
            progress(done, waiting)


def timed(connection: psycopg.Connection, calls: int) -> dict[str, float]:
    """The milliseconds of a call at the median, by side; asked by turns, after some unmeasured."""
    generator = np.random.default_rng(2)
    topics = unit_vectors(np.random.default_rng(1), TOPICS, DIMS)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for call in range(-calls // 10, calls):
        vector = topics[generator.integers(TOPICS)] + unit_vectors(generator, DIMS)
        query = " ".join(texts(generator, 1)[0].split()[:6])
        for side, chosen in SIDES.items():
            begun = time.perf_counter()
            statement = SEARCH.format(side.partition(",")[0])
            connection.execute(statement, (query, str(vector.tolist()), chosen)).fetchone()
            if call >= 0:
                times[side].append(1000 * (time.perf_counter() - begun))
    return {side: statistics.median(taken) for side, taken in times.items()}


def dropped(connection: psycopg.Connection, partition: int) -> dict[str, float]:
    """The seconds from a partition's DROP until all of it is forgotten, by reranker."""
    connection.execute(f"DROP TABLE parts_{partition}")
    seconds = {}
    for name in ("split", "whole"):
        begun = time.perf_counter()
        connection.execute("SELECT pgrerank.enqueue(%s)", (name,))
        seconds[name] = time.perf_counter() - begun
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill, ask, drop, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--documents", type=int, default=10_000, help="in each partition")
    parser.add_argument("--calls", type=int, default=300)
    asked = parser.parse_args(arguments)
    settings = {"shared_buffers": "2GB", "max_wal_size": "16GB", "synchronous_commit": "off"}
    with (
        embedded.start(settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        schema.install(connection)
        fill(connection, asked.partitions, asked.documents)
        times = timed(connection, asked.calls)
        seconds = dropped(connection, asked.partitions - 1)
    print_rows(
        ["searched", "ms"],
        [[side, f"{took:.2f}"] for side, took in times.items()],
        as_json=False,
    )
    result: dict[str, Any] = {
        "partitions": asked.partitions,
        "documents": asked.documents,
        "milliseconds": times,
        "of_lone": times["split"] / times["lone"],
        "of_whole": times["split, all"] / times["whole, all"],
        "seconds_to_forget": seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
