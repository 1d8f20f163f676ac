"""What the worker makes of a model, beside the bare library: pairs, queries and documents a second.

    python benchmarks/worker.py [--sizes small,base,large] [--clients 1,4,16,64] [--seconds 10]
        [--documents 100] [--words 100]
    python benchmarks/worker.py --sizes base --clients 1,16 --seconds 5  # some minutes of a GPU

Random weights of real sizes (small: 12 layers of 384, as MiniLM-L12; base: 12 of 768, as BERT-base;
large: 24 of 1024, as BERT-large), so that nothing is downloaded; on a GPU where there is one. For
each size: a cross-encoder by the library at its defaults, by the library at the fastest of several
precisions and batches, by fastembed on ONNX Runtime where it is installed, and through SQL by so
many clients, each asking for so many documents of so many words, and by 64 that together ask for
three times what it can; then the encoding of one query, and the encoding of documents to embeddings
and token vectors, by the library at its defaults and through SQL. The worker's cache is off. The
last line is one JSON object; its ratios are throughputs, above 1 where ours is ahead, over the
sizes the least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from bare_models import (
    CALLS,
    Load,
    bare_cross_encoder,
    bare_encoder,
    compiled_rival,
    make_models,
    rate,
)
from overload import CROSS_ENCODE, overload

from pgrerank import embedded
from pgrerank.install import schema
from pgrerank.terminal import note, print_rows
from pgrerank.worker.child import worker_process

SIZES = {"tiny": (2, 32), "small": (12, 384), "base": (12, 768), "large": (24, 1024)}
"""Layers and width; `tiny` is for tests."""
SETTINGS = {
    "autovacuum": "off",
    "max_wal_size": "8GB",
    "shared_buffers": "1GB",
    "wal_buffers": "64MB",
}
"""Of the server, as one has them that takes the vectors of a GPU."""


def client(dsn: str, seed: int, load: Load, start: Any, taken: Any) -> None:
    """Ask for so long, in a process of its own; puts when answers came, and how long each took."""
    calls = load.calls(100 + seed)
    with psycopg.connect(dsn, autocommit=True) as connection:

        def ask(call: int) -> None:
            connection.execute(CROSS_ENCODE, (*calls[call % CALLS], "10 min")).fetchone()

        warm = time.perf_counter() + load.seconds / 5
        ask(0)
        while time.perf_counter() < warm:
            ask(0)
        start.wait()
        begun, answers, call = time.perf_counter(), [], 1
        while time.perf_counter() - begun < load.seconds or not answers:
            asked = time.perf_counter()
            ask(call)
            call += 1
            answers.append((time.perf_counter() - begun, time.perf_counter() - asked))
    taken.put(answers)


def cross_encoding(dsn: str, clients: int, load: Load) -> dict[str, float]:
    """Pairs a second through SQL, and p50 and p95 of a call in milliseconds."""
    context = multiprocessing.get_context("spawn")
    start, taken = context.Barrier(clients), context.Queue()
    processes = [
        context.Process(target=client, args=(dsn, seed, load, start, taken), daemon=True)
        for seed in range(clients)
    ]
    for process in processes:
        process.start()
    answers = [one for _ in processes for one in taken.get(timeout=600)]
    for process in processes:
        process.join()
    # As a client ends with its last answer, the others have the worker for themselves then.
    cuts = statistics.quantiles([took for _, took in [*answers, *answers[:1]]], n=20)
    last = max(at for at, _ in answers)
    return {
        "clients": clients,
        "pairs_a_second": load.documents * len(answers) / last,
        "p50": 1000 * cuts[9],
        "p95": 1000 * cuts[18],
    }


def query_encoding(connection: psycopg.Connection, load: Load) -> float:
    """Queries a second that are encoded for a search which compares nothing."""

    calls = load.calls(3)

    def search(call: int) -> int:
        connection.execute(
            "SELECT * FROM pgrerank.nothing_search(%s, stages => '{dense}')",
            (calls[call % CALLS][0],),
        ).fetchall()
        return 1

    return rate(load, search, warm=5)


def ingest(connection: psycopg.Connection, load: Load, expected: float) -> float:
    """Documents a second that a worker encodes and stores, of as many as take that long bare."""
    count = max(load.documents, int(expected * load.seconds))
    _store(connection, load.texts(6, load.documents))  # the first warm up
    texts = load.texts(7, count)
    begun = time.perf_counter()
    _store(connection, texts)
    return count / (time.perf_counter() - begun)


def _store(connection: psycopg.Connection, texts: list[str]) -> None:
    """Insert documents, and wait until they are encoded."""
    with connection.cursor().copy("COPY documents (body) FROM STDIN") as copy:
        for text in texts:
            copy.write_row((text,))
    while connection.execute(
        "SELECT EXISTS (SELECT FROM pgrerank.pending WHERE failed_at IS NULL)"
    ).fetchone() == (True,):
        time.sleep(0.02)


def set_up(connection: psycopg.Connection, reranker: str, encoder: str, width: int) -> None:
    """A database whose rerankers have these models."""
    schema.install(connection)
    for name, kind, source, dims in (
        ("reranker", "cross_encoder", reranker, None),
        ("embedding", "embedding", encoder, width),
        ("tokens", "late_interaction", encoder, width),
    ):
        connection.execute(
            "SELECT pgrerank.register_model(%s, %s, %s, %s, %s)",
            (name, kind, source, dims, "sentence_transformer" if dims else None),
        )
    for name in ("documents", "nothing"):
        connection.execute(
            f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)"
        )
        connection.execute(
            "SELECT pgrerank.create_reranker(%s, %s, '{body}', embedding_model => 'embedding',"
            " late_interaction_model => 'tokens')",
            (name, name),
        )


@contextlib.contextmanager
def served(folder: Path, reranker: str, encoder: str, width: int) -> Iterator[psycopg.Connection]:
    """A session in a database with these models, and a worker that has loaded them."""
    with (
        embedded.start(settings=SETTINGS) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        set_up(connection, reranker, encoder, width)
        options = ("--preload", "--cache", "0", "--queue", "1000")
        with worker_process(server.dsn, folder / "worker.log", *options):
            yield connection


def measure(size: str, load: Load, clients: list[int]) -> dict[str, Any]:
    """All figures of one size, and their ratios."""
    layers, width = SIZES[size]
    with tempfile.TemporaryDirectory(prefix="pgrerank-worker-") as name:
        folder = Path(name)
        reranker, encoder = make_models(folder, layers, width)
        note(f"{size}: the bare library")
        default, best, best_name = bare_cross_encoder(reranker, load)
        rival = compiled_rival(reranker, load)
        bare_queries, bare_documents = bare_encoder(encoder, load)
        note(f"{size}: through SQL")
        with served(folder, reranker, encoder, width) as connection:
            dsn = connection.info.dsn + f" password={connection.info.password}"
            ours = [cross_encoding(dsn, count, load) for count in clients]
            crowd = overload(dsn, load, max(one["pairs_a_second"] for one in ours))
            queries = query_encoding(connection, load)
            documents = ingest(connection, load, bare_documents)
    alone = ours[0]["pairs_a_second"]
    return {
        "size": size,
        "pairs": {
            "defaults": default,
            "best": best,
            "best_is": best_name,
            "fastembed": rival,
            "sql": ours,
        },
        "overload": crowd,
        "queries": {"bare": bare_queries, "sql": queries},
        "documents": {"bare": bare_documents, "sql": documents},
        "sql_over_default": alone / default,
        "sql_over_best": alone / best,
        **({} if rival is None else {"sql_over_fastembed": alone / rival}),
        "overload_over_peak": crowd["over_peak"],
        "loaded_over_best": max(one["pairs_a_second"] for one in ours) / best,
        "query_over_bare": queries / bare_queries,
        "ingest_over_bare": documents / bare_documents,
    }


def rows_of(found: dict[str, Any]) -> Iterator[list[str]]:
    """The lines of the table."""
    pairs = found["pairs"]
    yield [found["size"], "pairs, the library's defaults", f"{pairs['defaults']:.0f}", "", ""]
    yield [found["size"], f"pairs, {pairs['best_is']}", f"{pairs['best']:.0f}", "", ""]
    if pairs["fastembed"] is not None:
        yield [found["size"], "pairs, fastembed", f"{pairs['fastembed']:.0f}", "", ""]
    for one in pairs["sql"]:
        what = f"pairs through SQL, clients: {one['clients']}"
        times = [f"{one[cut]:.0f}" for cut in ("p50", "p95")]
        yield [found["size"], what, f"{one['pairs_a_second']:.0f}", *times]
    crowd = found["overload"]
    what = f"pairs for {crowd['clients']} clients that ask for three times as many"
    yield [found["size"], what, f"{crowd['pairs_a_second']:.0f}", "", ""]
    what = f"{crowd['answered']:.0%} of them answered, the last {crowd['late']:.0f} ms late"
    yield [found["size"], what, "", "", ""]
    for what in ("queries", "documents"):
        for way in ("bare", "sql"):
            yield [found["size"], f"{what}, {way}", f"{found[what][way]:.0f}", "", ""]


def main() -> None:
    """Make models, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", default="small", help="tiny, small, base, large, by commas")
    parser.add_argument("--clients", default="1,4,16", help="at a time, by commas, the first 1")
    parser.add_argument("--seconds", type=float, default=10, help="for each measurement")
    parser.add_argument("--documents", type=int, default=100, help="of a call")
    parser.add_argument("--words", type=int, default=100, help="of a document")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # what the libraries say of random weights
    load = Load(arguments.documents, arguments.words, arguments.seconds)
    clients = [int(count) for count in arguments.clients.split(",")]
    found = [measure(size, load, clients) for size in arguments.sizes.split(",")]
    print_rows(
        ["size", "what", "a second", "p50 ms", "p95 ms"],
        [row for one in found for row in rows_of(one)],
        as_json=False,
    )
    names = [name for name in found[0] if "_over_" in name]
    least = {name: min(one[name] for one in found) for name in names}
    print(json.dumps(least | {"sizes": found}))


if __name__ == "__main__":
    main()
