"""What each stage brings on BEIR collections, through the product: one SQL call a query.

    python benchmarks/stages.py data/{scifact,cranfield,npl} [--tune] [--report FOLDER]

Reads corpus.jsonl, queries.jsonl and qrels/test.tsv of each folder, encodes the corpus with the
demo's models in an embedded server (kept in the user's cache, so that a second run only asks), and
evaluates as `pgrerank evaluate` does, or as `pgrerank tune` does with --tune. Prints one table in
Markdown over all collections; with --report, a folder for each has its report. The last line is
one JSON object: each collection's evaluation, and the measures' means over them by order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import psycopg
from psycopg import sql

from pgrerank import embedded
from pgrerank.catalog import register_model
from pgrerank.demo.models import MODELS, default_folder
from pgrerank.evaluation.evaluate import evaluate, search_all
from pgrerank.evaluation.report import write_report
from pgrerank.evaluation.result import Evaluation, tuning_of
from pgrerank.evaluation.traces import spread
from pgrerank.evaluation.tune import tune
from pgrerank.evaluation.variant import Variant
from pgrerank.install import schema
from pgrerank.judgements import Judgements, load_set, read_beir, save_set
from pgrerank.judgements.beir import read_corpus
from pgrerank.terminal import document_progress, note, work_progress
from pgrerank.worker.backfill import backfill
from pgrerank.worker.child import worker_process


def set_up(connection: psycopg.Connection, dsn: str, folder: Path) -> str:
    """Corpus, judgements and an encoded reranker, where they are not there yet; its name."""
    name = folder.name
    if connection.execute("SELECT to_regclass(%s)", (name,)).fetchone() == (None,):
        with connection.transaction():
            table = sql.Identifier(name)
            connection.execute(
                sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, title text, body text)").format(
                    table
                )
            )
            with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(table)) as copy:
                for key, document in read_corpus(folder).items():
                    copy.write_row((key, document.title or None, document.text))
            save_set(connection, name, read_beir(folder, "test"), replace=True)
            connection.execute(
                "SELECT pgrerank.create_reranker(%s, %s, '{title,body}',"
                " embedding_model => 'minilm', late_interaction_model => 'minilm-tokens',"
                " cross_encoder_model => 'ms-marco')",
                (name, name),
            )
    with document_progress(f"encoding {name}") as progress:
        asyncio.run(backfill(dsn, name, on_progress=progress))
    return name


def some_queries(connection: psycopg.Connection, name: str, count: int | None) -> Judgements:
    """The set's judged queries, or so many of them, evenly spread."""
    judged = load_set(connection, name)
    return judged.only(spread(list(judged.queries), count or len(judged.queries)))


@contextmanager
def served(
    folders: Sequence[Path], data: Path, *options: str
) -> Iterator[tuple[psycopg.Connection, list[str]]]:
    """A server with the collections encoded and a worker up: a connection, and the rerankers."""
    with (
        embedded.start(data) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
        tempfile.TemporaryDirectory() as logs,
    ):
        schema.install(connection)
        present = {name for (name,) in connection.execute("SELECT name FROM pgrerank.models")}
        for model in MODELS:
            if model["name"] not in present:
                register_model(connection, **model)
        names = [set_up(connection, server.dsn, folder) for folder in folders]
        with worker_process(server.dsn, Path(logs) / "worker.log", "--preload", *options):
            yield connection, names


def measured(
    connection: psycopg.Connection, name: str, arguments: Any, **settings: Any
) -> Evaluation:
    """The collection's reranker, evaluated or tuned on its test queries."""
    judged = some_queries(connection, name, arguments.queries)
    variant = Variant(name, timeout="5 min", **settings)

    def phase(title: str) -> Any:
        return work_progress(f"{name}: {title}", "queries")

    searched = search_all(connection, variant, judged, phase=phase)
    command = f"python benchmarks/stages.py FOLDER/{name}" + (" --tune" if arguments.tune else "")
    tuning = None
    if arguments.tune:
        tuning = tune(
            connection,
            searched,
            max_candidates=arguments.max_candidates,
            max_maxsim_top=arguments.max_maxsim_top,
            phase=phase,
        )
    evaluation = evaluate(
        connection, searched, qrels=name, command=command, tuning=tuning, phase=phase
    )
    if arguments.report:
        write_report(evaluation, arguments.report / name)
    return evaluation


def markdown(evaluations: list[Evaluation]) -> str:
    """One table over all collections."""
    names = evaluations[0]["measures"]
    head = ["collection", "order", *names, "ms", "p", "better, worse"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for found in evaluations:
        first = f"{found['reranker']}, {found['queries']} queries"
        for order in found["orders"]:
            cells = [first, order["name"], *(f"{order['measures'][n]:.3f}" for n in names)]
            cells.append(f"{order['total_ms']['p50']:.0f}")
            if order["p"] is None:
                cells += ["", ""]
            else:
                cells += [f"{order['p']:.4f}", f"{order['better']}, {order['worse']}"]
            lines.append("| " + " | ".join(cells) + " |")
            first = ""
    return "\n".join(lines)


def means(evaluations: list[Evaluation]) -> dict[str, dict[str, float]]:
    """Each measure's mean over the collections, by the orders that all of them have."""
    of_all: dict[str, list[dict[str, float]]] = {}
    for found in evaluations:
        for order in found["orders"]:
            of_all.setdefault(order["name"], []).append(order["measures"])
    return {
        name: {measure: fmean(one[measure] for one in each) for measure in each[0]}
        for name, each in of_all.items()
        if len(each) == len(evaluations)
    }


def advice(found: Evaluation) -> list[str]:
    """What tuning found, a line each."""
    lines = [f"{found['reranker']}: {one['text']}" for one in tuning_of(found)["recommendations"]]
    blend = tuning_of(found)["blend"]
    if blend is not None:
        lines.append(
            f"{found['reranker']}: {blend['name']}, {blend['weights']}: {blend['present']:.4f} by"
            f" default, {blend['quality']:.4f} with it, p = {blend['p']:.4f}"
        )
    return lines + [f"{found['reranker']}: {warning}" for warning in found["warnings"]]


def add_collections(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which collections, and where they are served."""
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--queries", type=int, help="take only so many of the judged queries")
    parser.add_argument("--data", type=Path, default=default_folder().parent / "stages")


def main() -> None:
    """Set up, evaluate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_collections(parser)
    parser.add_argument("--tune", action="store_true", help="sizes and blends too")
    parser.add_argument("--max-candidates", type=int)
    parser.add_argument("--max-maxsim-top", type=int)
    parser.add_argument("--report", type=Path, help="folder for the collections' reports")
    arguments = parser.parse_args()
    with served(arguments.folders, arguments.data) as (connection, names):
        evaluations = [measured(connection, name, arguments) for name in names]
    print(markdown(evaluations))
    for found in evaluations:
        for line in advice(found):
            note(line)
    shown = [{k: v for k, v in found.items() if k != "per_query"} for found in evaluations]
    collections = {found["reranker"]: found for found in shown}
    json.dump({"collections": collections, "means": means(evaluations)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
