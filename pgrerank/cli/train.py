"""The commands from clicks to a better model: feedback, mine, train, gate."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from pgrerank.cli.options import Dsn, Json, Name
from pgrerank.errors import SettingsError, extra
from pgrerank.install.schema import connect
from pgrerank.models import Kind, Loader
from pgrerank.terminal import note, print_rows, report_errors, work_progress
from pgrerank.training import read_beir, read_triples, split, write_triples

app = typer.Typer()

KindName = Literal["embedding", "late-interaction", "cross-encoder"]


@app.command(epilog="Example: pgrerank feedback documents --output clicks.jsonl")
def feedback(
    name: Name,
    output: Annotated[Path, typer.Option(help="JSON lines file to write.")],
    dsn: Dsn = "",
    relevant_from: Annotated[
        float, typer.Option(help="Mean relevance from which a document is a positive.")
    ] = 0.5,
    as_json: Json = False,
) -> None:
    """Export what pgrerank.feedback collected: a query, its positives and negatives a line."""
    from pgrerank.training.feedback import export_feedback

    with report_errors(), connect(dsn) as connection:
        exported = export_feedback(connection, name, relevant_from=relevant_from)
        write_triples(output, exported.triples)
        _report({"queries": len(exported.triples)}, exported.dropped, as_json=as_json)


@app.command(epilog="Example: pgrerank mine documents clicks.jsonl --output mined")
def mine(
    name: Name,
    data: Annotated[Path, typer.Argument(help="JSON lines file, or BEIR folder.")],
    output: Annotated[Path, typer.Option(help="Folder for train.jsonl and held-out.jsonl.")],
    dsn: Dsn = "",
    negatives: Annotated[int, typer.Option(help="Negatives to find for each query.")] = 8,
    first: Annotated[int, typer.Option(help="Highest rank that can be a negative.")] = 2,
    last: Annotated[int, typer.Option(help="Lowest rank that is looked at.")] = 50,
    margin: Annotated[
        float | None, typer.Option(help="Cosine by which a negative is below the best positive.")
    ] = None,
    false_negative_margin: Annotated[
        float, typer.Option(help="The same in the cross-encoder's logits, where there is one.")
    ] = 1.0,
    held_out: Annotated[
        float, typer.Option(help="Share of queries kept for the gate.", min=0.01, max=0.9)
    ] = 0.2,
    split_name: Annotated[str, typer.Option("--split", help="Of a BEIR folder.")] = "train",
    seed: Annotated[int, typer.Option(help="Which queries are held out.")] = 1,
    as_json: Json = False,
) -> None:
    """Find hard negatives by a reranker's own index, and split by query.

    A document is no negative when it is a positive's duplicate, ranked above --first, as near as
    --margin to the positive, or as relevant as it to the cross-encoder in use.
    """
    from pgrerank.training.mining import Guards
    from pgrerank.training.mining import mine as run

    with report_errors(), connect(dsn) as connection:
        guards = Guards(first, last, margin, false_negative_margin, negatives)
        triples = read_beir(data, split_name) if data.is_dir() else read_triples(data)
        with work_progress("mining", "queries") as progress:
            mined = run(connection, name, triples, guards, on_progress=progress)
        train_part, held_part = split(mined.triples, held_out, seed=seed)
        write_triples(output / "train.jsonl", train_part)
        write_triples(output / "held-out.jsonl", held_part)
        counted = {
            "train queries": len(train_part),
            "held-out queries": len(held_part),
            "negatives": mined.negatives,
            "candidates": mined.candidates,
            "queries without negatives": mined.without_negatives,
        }
        _report(counted, mined.dropped, as_json=as_json)


@app.command(
    epilog="Example: pgrerank train cross-encoder mined/train.jsonl"
    " --base cross-encoder/ms-marco-MiniLM-L12-v2 --output tuned"
)
def train(
    context: typer.Context,
    kind: Annotated[KindName, typer.Argument(help="What to train.")],
    data: Annotated[Path, typer.Argument(help="JSON lines file.")],
    base: Annotated[str, typer.Option(help="Hub name, folder, or package://PACKAGE/FOLDER.")],
    output: Annotated[Path, typer.Option(help="Folder for the run; the model is in its model/.")],
    loader: Annotated[
        Loader | None,
        typer.Option(help="What reads the base; sentence_transformer for token vectors of one."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the base on the hub.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="contrastive, bce or distillation; by default by kind.")
    ] = None,
    epochs: Annotated[float, typer.Option(help="At most so often over the data.", min=0.01)] = 3.0,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.", min=2)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    negatives: Annotated[int, typer.Option(help="Negatives for each positive.", min=1)] = 4,
    max_tokens: Annotated[int, typer.Option(help="Window; texts are cut.", min=8)] = 256,
    held_out: Annotated[
        float, typer.Option(help="Share of queries for early stopping.", min=0.01, max=0.9)
    ] = 0.1,
    patience: Annotated[int, typer.Option(help="Looks without a gain before it stops.")] = 4,
    lora: Annotated[
        int | None, typer.Option(help="Rank of adapters, for decoders too large to train.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split, order and adapters.")] = 1,
    as_json: Json = False,
) -> None:
    """Fine-tune a model; the best by held-out nDCG@10 is kept.

    Run again after a kill, the same command goes on from the last checkpoint.
    """
    others = ("kind", "data", "output", "loader", "as_json")
    settings = {name: value for name, value in context.params.items() if name not in others}
    with report_errors():
        report = _train(kind, data, output, loader, settings)
        before, after = (report[when]["nDCG@10"] for when in ("before", "after"))
        if as_json:
            sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
            return
        note(
            f"nDCG@10 of {report['held_out_queries']} held-out queries' own documents:"
            f" {before:.4f} before, {after:.4f} after {report['steps']} steps,"
            f" {report['seconds']:.0f} s"
        )
        note(
            f"the model is in {output / 'model'}; compare it with the one in use: pgrerank gate"
            f" RERANKER NEW-NAME --kind {kind} --source {output / 'model'} --held-out …"
        )


def _train(
    kind: str, data: Path, output: Path, loader: str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    with extra("train", "training"):
        from pgrerank.training.fine_tune import fine_tune
    from pgrerank.training.run import Settings

    wanted = Settings(_kind(kind), base_loader=loader, **settings)
    with work_progress("training", "rows") as progress:
        return fine_tune(
            wanted,
            read_triples(data),
            output,
            on_progress=progress,
            command="pgrerank " + shlex.join(sys.argv[1:]),
        )


@app.command(
    epilog="Example: pgrerank gate documents minilm-2 --kind embedding --source tuned/model"
    " --held-out mined/held-out.jsonl"
)
def gate(
    name: Name,
    model: Annotated[str, typer.Argument(help="Name to register the new model by.")],
    kind: Annotated[KindName, typer.Option(help="What kind of model it is.")],
    source: Annotated[str, typer.Option(help="Hub name, folder, or package://PACKAGE/FOLDER.")],
    held_out: Annotated[Path, typer.Option(help="JSON lines that it was not trained on.")],
    dsn: Dsn = "",
    loader: Annotated[
        Loader | None, typer.Option(help="What reads it; by default by kind.")
    ] = None,
    max_p: Annotated[
        float, typer.Option(help="How likely a gain may be by chance.", min=0, max=1)
    ] = 0.05,
    force: Annotated[
        bool, typer.Option("--force", help="Register it in any case; that is recorded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare a new model with the one in use; register it if it is better.

    Better is a higher nDCG@10 on the held-out queries that a paired randomisation test does not
    put down to chance. What was found is kept in pgrerank.models.measures.
    """
    from pgrerank.catalog import model_spec, register_model
    from pgrerank.training.gate import judge

    with report_errors(), connect(dsn) as connection:
        spec = model_spec(model, _kind(kind), source, loader=loader)
        with work_progress("comparing", "queries") as progress:
            verdict = judge(
                connection, name, spec, read_triples(held_out), max_p=max_p, on_progress=progress
            )
        measures = verdict.measures(forced=force)
        row = measures["gate"]
        print_rows(list(row), [list(row.values())], as_json=as_json)
        if not verdict.passed and not force:
            raise SettingsError(
                f"model {model} is not registered: nDCG@10 {row['before']:.4f} with"
                f" {row['against']}, {row['after']:.4f} with it, p = {row['p']:.4f} on"
                f" {row['queries']} queries; expected a gain with p <= {max_p:g}. Give more"
                " held-out queries, a larger --max-p, or --force"
            )
        register_model(connection, model, spec.kind, source, loader=loader, measures=measures)
        note(
            f"model {model} is registered; let it take over: pgrerank alter {name}"
            f" --{kind}-model {model}"
        )


def _kind(name: str) -> Kind:
    return cast(Kind, name.replace("-", "_"))


def _report(counted: dict[str, int], dropped: Counter[str], *, as_json: bool) -> None:
    """Print counts, and how many were left out for which reason."""
    rows: list[Sequence[Any]] = [*counted.items()]
    rows += [(f"dropped: {reason}", count) for reason, count in dropped.most_common() if count]
    if as_json:
        print_rows([str(row[0]) for row in rows], [[row[1] for row in rows]], as_json=True)
    else:
        print_rows(["", "number"], rows, as_json=False)
