"""The commands that say what each stage brings: evaluate, tune."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from pgrerank import judgements
from pgrerank.cli.options import Dsn, Json, Measures
from pgrerank.evaluation.evaluate import Searched, evaluate, runs_of, search_all
from pgrerank.evaluation.orders import MEASURES
from pgrerank.evaluation.result import Evaluation, Milliseconds, PassagesFound, Tuning
from pgrerank.evaluation.traces import spread
from pgrerank.evaluation.tune import apply, tune
from pgrerank.evaluation.variant import Variant, parse_variant
from pgrerank.install.schema import connect
from pgrerank.judgements import Judgements
from pgrerank.terminal import console, note, print_rows, report_errors, work_progress

app = typer.Typer()

VariantText = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Reranker: NAME, NAME@GENERATION, or NAME:candidates=50,stages=dense."
    ),
]
Qrels = Annotated[
    str,
    typer.Option(
        "--qrels", metavar="SET|PATH", help="Set in the database, BEIR folder, or JSON lines."
    ),
]
Split = Annotated[str, typer.Option(help="Of a BEIR folder.")]
Queries = Annotated[
    int | None, typer.Option(min=1, help="Take only so many of the judged queries.")
]
Report = Annotated[
    Path | None, typer.Option(help="Folder for report.html, plots, CSV and evaluation.json.")
]


@app.command(
    "evaluate",
    epilog="Example: pgrerank evaluate documents --qrels dev --report report --compare documents@1",
)
def evaluate_command(
    name: VariantText,
    qrels_name: Qrels,
    dsn: Dsn = "",
    split: Split = "test",
    measures: Measures = None,
    queries: Queries = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="Another to compare with, as NAME, or an evaluation.json."
        ),
    ] = None,
    report: Report = None,
    run_folder: Annotated[
        Path | None, typer.Option("--runs", help="Folder for a TREC run of each order.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what each stage of a reranker brings on judged queries.

    Exact recall, HNSW, MaxSim and cross-encoder, each with the stage's milliseconds and a paired
    randomisation test against the order before it. A query is one search, by a running worker.
    """
    with report_errors(), connect(dsn) as connection:
        variant = parse_variant(name)
        judged = find_judgements(connection, qrels_name, split, queries)
        searched = _search_all(connection, variant, judged, measures)
        evaluation = _evaluate(connection, searched, qrels_name)
        other = _other(connection, compare, judged, qrels_name, measures)
        if run_folder is not None:
            for order, run in runs_of(searched, evaluation["orders"]).items():
                file = order.replace("+ ", "").replace(", ", "-").lower()
                judgements.write_run(run_folder / f"{file}.txt", run, tag=file)
        _show(evaluation, other, report, as_json=as_json)


@app.command(
    "tune",
    epilog="Example: pgrerank tune documents --qrels dev --max-maxsim-top 100 --apply",
)
def tune_command(
    name: VariantText,
    qrels_name: Qrels,
    dsn: Dsn = "",
    split: Split = "test",
    measures: Measures = None,
    queries: Queries = None,
    max_candidates: Annotated[
        int | None, typer.Option(min=10, help="Most candidates to look at; by default 200.")
    ] = None,
    max_maxsim_top: Annotated[
        int | None,
        typer.Option(min=1, help="Most documents for the cross-encoder; by default 50."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--apply", help="Write what is recommended to the reranker.")
    ] = False,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Find the sizes, the blend and the weights of signals that serve best, on judged queries.

    Quality and time by candidates and maxsim_top, the smallest that keep 95 % of the gain, and
    weights of stages and signals, cross-validated: recommended if they gain by more than chance.
    """
    with report_errors(), connect(dsn) as connection:
        variant = parse_variant(name)
        judged = find_judgements(connection, qrels_name, split, queries)
        searched = _search_all(connection, variant, judged, measures)
        tuning = tune(
            connection,
            searched,
            max_candidates=max_candidates,
            max_maxsim_top=max_maxsim_top,
            phase=_phase,
        )
        evaluation = _evaluate(connection, searched, qrels_name, tuning)
        _show(evaluation, None, report, as_json=as_json)
        if write:
            chosen = apply(connection, evaluation)
            changes = ", ".join(f"{key} = {value}" for key, value in chosen.items())
            note(f"reranker {variant.reranker}: {changes or 'nothing to change'}")


def _phase(title: str) -> Any:
    return work_progress(title, "queries")


def find_judgements(
    connection: psycopg.Connection[Any], name: str, split: str, number: int | None
) -> Judgements:
    """Find the judgements of a set or path, and take `number` of the queries, evenly spread."""
    judged = judgements.find(connection, name, split)
    return judged.only(spread(list(judged.queries), number or len(judged.queries)))


def _search_all(
    connection: psycopg.Connection[Any],
    variant: Variant,
    judged: Judgements,
    measures: list[str] | None,
) -> Searched:
    return search_all(connection, variant, judged, measures=measures or MEASURES, phase=_phase)


def _evaluate(
    connection: psycopg.Connection[Any],
    searched: Searched,
    qrels_name: str,
    tuning: Tuning | None = None,
) -> Evaluation:
    return evaluate(
        connection,
        searched,
        qrels=Path(qrels_name).name,
        command="pgrerank " + shlex.join(_without_secrets(sys.argv[1:])),
        tuning=tuning,
        phase=_phase,
    )


def _without_secrets(arguments: list[str]) -> list[str]:
    """The command line without its connection string, which may hold a password."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--dsn"):
            kept.append(argument)
        skip = argument == "--dsn"
    return kept


def _other(
    connection: psycopg.Connection[Any],
    name: str | None,
    judged: Judgements,
    qrels_name: str,
    measures: list[str] | None,
) -> Evaluation | None:
    if name is None:
        return None
    if Path(name).exists():
        from pgrerank.evaluation.report import read_evaluation

        return read_evaluation(Path(name))
    searched = _search_all(connection, parse_variant(name), judged, measures)
    return _evaluate(connection, searched, qrels_name)


def _show(
    evaluation: Evaluation, other: Evaluation | None, report: Path | None, *, as_json: bool
) -> None:
    if report is not None:
        from pgrerank.evaluation.report import write_report

        write_report(evaluation, report, other=other)
    if as_json:
        shown = [
            {key: value for key, value in one.items() if key != "per_query"}
            for one in (evaluation, other)
            if one is not None
        ]
        sys.stdout.write(json.dumps(shown if other else shown[0], ensure_ascii=False) + "\n")
    else:
        for one in (evaluation, other):
            if one is not None:
                _print(one)
    for warning in evaluation["warnings"]:
        note(f"warning: {warning}")
    if report is not None:
        note(f"report: {report / 'report.html'}")


def _print(evaluation: Evaluation) -> None:
    note(
        f"{evaluation['label']}, generation {evaluation['generation']}, on {evaluation['qrels']}:"
        f" {evaluation['queries']} queries, {evaluation['judgements']} judgements"
    )
    columns = ["order", *evaluation["measures"], "ms p50", "p95", "with all before", "p95"]
    orders = [
        [
            *(order["name"], *order["measures"].values()),
            *(*_whole(order["stage_ms"]), *_whole(order["total_ms"])),
            *(order["gain"], order["p"], order["better"], order["worse"]),
        ]
        for order in evaluation["orders"]
    ]
    _section([*columns, "gain", "p", "better", "worse"], orders)
    _section(
        ["ef_search", "share of exact recall", "ms p50", "p95"],
        [
            [point["ef_search"], point["recall"], *_whole(point["ms"])]
            for point in evaluation["hnsw"]
        ],
    )
    reliability = evaluation["reliability"]
    if reliability is not None:
        note(
            f"relevance of {reliability['documents']} documents returned: ECE"
            f" {reliability['ece']:.4f}, Brier {reliability['brier']:.4f}"
        )
    _print_passages(evaluation["passages"])
    tuning = evaluation["tuning"]
    if tuning is None:
        return
    for setting, depth in tuning["depth"].items():
        _section(
            [setting, evaluation["measures"][0], "ms a call"],
            [[point["size"], point["quality"], round(point["ms"])] for point in depth],
        )
    _print_advice(tuning, evaluation["measures"][0])


def _print_passages(passages: PassagesFound | None) -> None:
    if passages is None:
        return
    if slices := passages["slices"]:
        _section(
            ["relevant documents of", "queries", *slices[0]["measures"]],
            [[one["name"], one["queries"], *one["measures"].values()] for one in slices],
        )
    note(
        f"passages: {passages['several']} of {passages['documents']} documents among the first ten"
        " have several"
    )
    if passages["judged"]:
        note(
            f"the passage shown is where the answer is: {passages['within']} of"
            f" {passages['judged']} relevant documents found"
        )


def _section(columns: list[str], rows: list[list[Any]]) -> None:
    console.print()
    print_rows(columns, rows, as_json=False)


def _whole(ms: Milliseconds) -> list[int]:
    return [round(ms["p50"]), round(ms["p95"])]


def _print_advice(tuning: Tuning, measure: str) -> None:
    for recommendation in tuning["recommendations"]:
        note(recommendation["text"])
    blend = tuning["blend"]
    if blend is not None:
        weights = ", ".join(f"{stage} {weight:g}" for stage, weight in blend["weights"].items())
        note(
            f"best: {blend['name']}, {weights}; {measure} {blend['present']:.4f} with the present"
            f" one, {blend['quality']:.4f} with it on queries that it was not found on"
            f" (p = {blend['p']:.3f})"
        )
    signals = tuning["signals"]
    if signals is not None:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in signals["weights"].items())
        note(
            f"signals: {weights}; {measure} {signals['present']:.4f} with the present weights,"
            f" {signals['quality']:.4f} with these on queries that they were not found on"
            f" (p = {signals['p']:.3f})"
        )
