"""The commands `pgrerank qrels …`: judgements by the name of their set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
import typer

from pgrerank import judgements
from pgrerank.cli.options import Dsn, Json
from pgrerank.errors import SettingsError
from pgrerank.install.schema import connect
from pgrerank.terminal import note, print_rows, report_errors

qrels_app = typer.Typer(
    help="Judgements in the database, by set: load, judge, list, export, drop.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Set = Annotated[str, typer.Argument(metavar="SET", help="Name of the set.")]


@qrels_app.command(epilog="Example: pgrerank qrels load scifact --beir scifact --split test")
def load(
    name: Set,
    dsn: Dsn = "",
    beir: Annotated[
        Path | None, typer.Option(help="Folder in BEIR's layout: queries.jsonl, qrels/SPLIT.tsv.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the BEIR folder.")] = "test",
    trec: Annotated[Path | None, typer.Option(help="TREC's qrels; they want --queries.")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="The queries: id<TAB>text, or BEIR's in a .jsonl.")
    ] = None,
    json_lines: Annotated[
        Path | None,
        typer.Option(help='Lines {"query": …, "qrels": {key: relevance}}, or triples with keys.'),
    ] = None,
    feedback: Annotated[
        str | None, typer.Option(metavar="RERANKER", help="What users said of its documents.")
    ] = None,
    relevant_from: Annotated[
        float, typer.Option(help="Mean relevance from which feedback means relevant.")
    ] = 0.5,
    check: Annotated[
        str | None,
        typer.Option(metavar="RERANKER", help="Tell which judged documents its source lacks."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="In place of the set of that name.")
    ] = False,
) -> None:
    """Read judgements from one source into a set."""
    with report_errors(), connect(dsn) as connection:
        sources = {"beir": beir, "trec": trec, "json-lines": json_lines, "feedback": feedback}
        given = [f"--{source}" for source, value in sources.items() if value is not None]
        if len(given) != 1:
            raise SettingsError(
                "give one of --beir, --trec, --json-lines and --feedback, not"
                f" {' and '.join(given) or 'none'}"
            )
        if (trec is None) != (queries is None):
            raise SettingsError("--trec wants --queries, and no other source does")
        if beir is not None:
            judged = judgements.read_beir(beir, split)
        elif trec is not None and queries is not None:
            judged = judgements.read_trec(trec, queries)
        elif json_lines is not None:
            judged = judgements.read_json_lines(json_lines)
        else:
            judged = judgements.from_feedback(
                connection, str(feedback), relevant_from=relevant_from
            )
        judgements.save_set(connection, name, judged, replace=replace)
        note(f"qrels set {name} has {judged.count} judgements of {len(judged.queries)} queries")
        if check is not None:
            _check(connection, check, judged)


def _check(connection: psycopg.Connection[Any], name: str, judged: judgements.Judgements) -> None:
    found = judgements.missing_keys(connection, name, judged)
    examples = ", ".join(map(repr, found.examples))
    note(
        f"{found.missing} of {found.judged} judged documents are not in the source of {name}"
        + (f", such as {examples}: no search can find them" if found.missing else "")
    )


@qrels_app.command("list", epilog="Example: pgrerank qrels list --json")
def list_sets(dsn: Dsn = "", as_json: Json = False) -> None:
    """The sets, with how many queries, judgements, and relevant documents they have."""
    with report_errors(), connect(dsn) as connection:
        columns = ("set", *judgements.QrelsSet._fields[1:])
        print_rows(columns, judgements.list_sets(connection), as_json=as_json)


@qrels_app.command(
    epilog="Example: pgrerank qrels export scifact --output qrels.txt --format trec"
    " --queries queries.tsv"
)
def export(
    name: Set,
    output: Annotated[Path, typer.Option(help="File to write.")],
    dsn: Dsn = "",
    form: Annotated[
        Literal["trec", "json-lines"],
        typer.Option("--format", help="trec for other tools; json-lines holds any text."),
    ] = "json-lines",
    queries: Annotated[
        Path | None, typer.Option(help="With trec: a file for the queries, id<TAB>text.")
    ] = None,
) -> None:
    """Write a set to a file."""
    with report_errors(), connect(dsn) as connection:
        judged = judgements.load_set(connection, name)
        if form == "trec":
            judgements.write_trec(judged, output, queries)
        elif queries is not None:
            raise SettingsError("--queries goes with --format trec: JSON lines hold the queries")
        else:
            judgements.write_json_lines(judged, output)


@qrels_app.command(epilog="Example: pgrerank qrels drop scifact --yes")
def drop(
    name: Set,
    dsn: Dsn = "",
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Delete a set: judgements are work that no command does again."""
    with report_errors(), connect(dsn) as connection:
        if not yes:
            typer.confirm(f"Delete the judgements of {name}?", abort=True)
        gone = judgements.drop_set(connection, name)
        note(f"qrels set {name} is gone, with {gone.judgements} judgements")
