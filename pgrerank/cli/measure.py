"""The command `pgrerank measure`, which measures a run in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgrerank import judgements
from pgrerank.cli.options import Dsn, Json, Measures
from pgrerank.evaluation import compare, measure_queries
from pgrerank.install.schema import connect
from pgrerank.judgements import Qrels, Run
from pgrerank.terminal import note, print_rows, report_errors

app = typer.Typer()

DEFAULT = ("nDCG@10", "RR@10", "AP", "R@100", "P@10", "Judged@10")
ByQuery = dict[str, dict[str, float]]


@app.command(
    epilog="Example: pgrerank measure --qrels scifact --run tuned.txt --against untuned.txt"
)
def measure(
    qrels_name: Annotated[
        str,
        typer.Option(
            "--qrels",
            metavar="SET|FILE",
            help="TREC's qrels, JSON lines (.jsonl) or a BEIR folder; if there is no such file, a"
            " set in the database.",
        ),
    ],
    run: Annotated[Path, typer.Option(help="The run, in TREC's format.")],
    dsn: Dsn = "",
    split: Annotated[str, typer.Option(help="Of a BEIR folder.")] = "test",
    measures: Measures = None,
    against: Annotated[
        Path | None, typer.Option(help="Another run, to say what --run gains over it.")
    ] = None,
    by_query: Annotated[bool, typer.Option("--by-query", help="A row for each query.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a run by judgements.

    A judged query that the run does not answer counts as 0. Whether a gain over another run is more
    than chance, a paired randomisation test says: p is two-sided.
    """
    with report_errors():
        judged = _qrels(qrels_name, split, dsn)
        names = measures or DEFAULT
        values = measure_queries(judged, _read(run, judged), names)
        others = measure_queries(judged, _read(against, judged), names) if against else None
        table = _by_query(values, others) if by_query else _means(values, others)
        print_rows(list(table[0]), [list(row.values()) for row in table], as_json=as_json)


def _qrels(name: str, split: str, dsn: str) -> Qrels:
    """Read judgements; here TREC's, which have no texts of queries, are enough."""
    path = Path(name)
    if path.is_file() and path.suffix != ".jsonl":
        return judgements.read_trec_qrels(path)
    if path.exists():
        return judgements.read(path, split).qrels
    with connect(dsn) as connection:
        return judgements.find(connection, name, split).qrels


def _read(path: Path, judged: Qrels) -> Run:
    run = judgements.read_run(path)
    unanswered, unjudged = len(judged.keys() - run.keys()), len(run.keys() - judged.keys())
    if unanswered:
        note(f"{path}: queries judged but not answered, which count as 0: {unanswered}")
    if unjudged:
        note(f"{path}: queries answered but not judged, which are left out: {unjudged}")
    return run


def _means(values: ByQuery, others: ByQuery | None) -> list[dict[str, object]]:
    if others is None:
        return [
            {"measure": name, "value": sum(found.values()) / len(found)}
            for name, found in values.items()
        ]
    rows: list[dict[str, object]] = []
    for name, found in values.items():
        c = compare(others[name], found)
        row = {"measure": name, "against": c.before, "value": c.after, "gain": c.gain, "p": c.p}
        rows.append(row | {"better": c.better, "worse": c.worse})
    return rows


def _by_query(values: ByQuery, others: ByQuery | None) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for query in next(iter(values.values())):
        row: dict[str, object] = {"query": query}
        for name, found in values.items():
            row[name] = found[query]
            if others is not None:
                row[f"{name} against"] = others[name][query]
        rows.append(row)
    return rows
