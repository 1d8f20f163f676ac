"""What each stage brings on a BEIR collection, through the product: one SQL call a query.

    python benchmarks/beir.py ../shared/data/scifact [--queries 100] [--maxsim-top 30]

Reads corpus.jsonl, queries.jsonl and qrels/test.tsv of the folder, encodes the corpus with the
demo's models in an embedded server (kept in the user's cache, so that a second run only asks) and
prints nDCG@10, RR@10, R@100 and the median milliseconds of a call for recall (exact and HNSW), with
MaxSim, and with the cross-encoder. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from beir_folder import read_lines, read_qrels, read_queries

from pgrerank import embedded, schema
from pgrerank.demo.models import MODELS, default_folder
from pgrerank.evaluation import measure
from pgrerank.terminal import document_progress, note, print_rows
from pgrerank.worker.backfill import backfill
from pgrerank.worker.child import worker_process
from pgrerank.worker.registry import register_model

MEASURES = ["nDCG@10", "RR@10", "R@100"]
ORDERS: dict[str, dict[str, Any]] = {
    "recall, exact": {"stages": ["recall"], "recall": "exact"},
    "recall, HNSW": {"stages": ["recall"], "recall": "hnsw"},
    "+ MaxSim": {"stages": ["recall", "maxsim"], "recall": "hnsw"},
    "+ cross-encoder": {"stages": ["recall", "maxsim", "cross_encoder"], "recall": "hnsw"},
}
SEARCH = (
    "SELECT id FROM pgrerank.collection_search(%(query)s, top_k => 100, stages => %(stages)s,"
    " recall => %(recall)s, maxsim_top => %(maxsim_top)s, timeout => '5 min', strict => true)"
)


def set_up(connection: psycopg.Connection, folder: Path, precision: str) -> None:
    """Schema, models, corpus and reranker, where they are not there yet."""
    schema.install(connection)
    if connection.execute("SELECT 1 FROM pgrerank.rerankers").fetchone():
        return
    connection.execute("CREATE TABLE collection (id text PRIMARY KEY, title text, body text)")
    with connection.cursor().copy("COPY collection FROM STDIN") as copy:
        for document in read_lines(folder / "corpus.jsonl"):
            copy.write_row((document["_id"], document.get("title") or None, document["text"]))
    for model in MODELS:
        register_model(connection, **model)
    connection.execute(
        "SELECT pgrerank.create_reranker('collection', 'collection', '{title,body}',"
        " embedding_model => 'minilm', late_interaction_model => 'minilm-tokens',"
        " cross_encoder_model => 'ms-marco', token_precision => %s)",
        (precision,),
    )


def ask(
    connection: psycopg.Connection, queries: dict[str, str], maxsim_top: int
) -> tuple[dict[str, dict[str, list[str]]], dict[str, float]]:
    """Runs and median milliseconds by order."""
    runs: dict[str, dict[str, list[str]]] = {name: {} for name in ORDERS}
    times: dict[str, list[float]] = {name: [] for name in ORDERS}
    with document_progress("asking") as progress:
        for number, (identifier, text) in enumerate(queries.items()):
            for name, settings in ORDERS.items():
                started = time.perf_counter()
                rows = connection.execute(
                    SEARCH, {"query": text, "maxsim_top": maxsim_top, **settings}
                ).fetchall()
                times[name].append(1000 * (time.perf_counter() - started))
                runs[name][identifier] = [row[0] for row in rows]
            progress(number + 1, len(queries))
    return runs, {name: median(taken) for name, taken in times.items()}


def main() -> None:
    """Set up, ask, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, help="take only so many of the judged queries")
    parser.add_argument("--maxsim-top", type=int, default=30)
    parser.add_argument("--precision", default="int8", choices=["float16", "int8", "bit"])
    arguments = parser.parse_args()
    qrels = read_qrels(arguments.folder)
    queries = dict(list(read_queries(arguments.folder).items())[: arguments.queries])
    home = default_folder().parent / f"beir-{arguments.folder.name}-{arguments.precision}"
    with (
        embedded.start(home) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
        tempfile.TemporaryDirectory() as logs,
    ):
        set_up(connection, arguments.folder, arguments.precision)
        started = time.monotonic()
        with document_progress("encoding") as progress:
            total = asyncio.run(backfill(server.dsn, "collection", on_progress=progress))
        if total:
            note(f"encoded {total} documents in {time.monotonic() - started:.0f} s")
        with worker_process(server.dsn, Path(logs) / "worker.log", "--preload"):
            runs, times = ask(connection, queries, arguments.maxsim_top)
    judged = {query: qrels[query] for query in queries}
    results = {name: measure(judged, runs[name], MEASURES) | {"ms": times[name]} for name in ORDERS}
    columns = ["order", *MEASURES, "ms"]
    rows = [[name, *(row[column] for column in columns[1:])] for name, row in results.items()]
    print_rows(columns, rows, as_json=False)
    json.dump({"collection": arguments.folder.name, "queries": len(queries), **results}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
