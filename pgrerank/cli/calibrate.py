"""The command `pgrerank calibrate`."""

from __future__ import annotations

from pathlib import Path

import typer

from pgrerank.cli.evaluate import Qrels, Queries, Split, VariantText, find_judgements
from pgrerank.cli.options import Dsn, Json
from pgrerank.evaluation.calibration import calibrate, save
from pgrerank.evaluation.variant import parse_variant
from pgrerank.install.schema import connect
from pgrerank.terminal import note, print_rows, report_errors, work_progress

app = typer.Typer()


@app.command("calibrate", epilog="Example: pgrerank calibrate documents --qrels dev")
def calibrate_command(
    name: VariantText,
    qrels_name: Qrels,
    dsn: Dsn = "",
    split: Split = "test",
    queries: Queries = None,
    as_json: Json = False,
) -> None:
    """Have searches tell each document's relevance: a probability, fitted to judged queries.

    One calibration for each set of stages that may score a document, of the generation in use or
    NAME@GENERATION. Its errors (ECE, Brier) are those on queries that it was not fitted to. With a
    min_relevance of "keeps", 95 % of the queries that have a relevant document keep an answer.
    """
    with report_errors(), connect(dsn) as connection:
        variant = parse_variant(name)
        judged = find_judgements(connection, qrels_name, split, queries)
        found = calibrate(
            connection, variant, judged, phase=lambda title: work_progress(title, "queries")
        )
        save(connection, variant, Path(qrels_name).name, found)
        columns = ["stages", "queries", "documents", "relevant", "ece", "brier", "keeps"]
        rows = [[getattr(one, column) for column in columns] for one in found]
        if as_json:
            columns += ["intercept", "slopes"]
            rows = [[*row, one.intercept, one.slopes] for row, one in zip(rows, found, strict=True)]
        else:
            rows = [[", ".join(stages), *rest] for stages, *rest in rows]
        print_rows(columns, rows, as_json=as_json)
        note(
            f"reranker {variant.reranker} is calibrated: min_relevance => {found[0].keeps:.2g}"
            " keeps an answer for 95 % of the queries that have one"
        )
