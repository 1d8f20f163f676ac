"""Options that several commands have, and the program that they belong to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from pgrerank.errors import KernelError
from pgrerank.stages import STAGES
from pgrerank.terminal import print_rows

Dsn = Annotated[
    str,
    typer.Option(help="Connection string of the database; libpq's variables (PGHOST …) serve too."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
PgConfig = Annotated[
    Path | None, typer.Option(help="The server's pg_config; by default that on the PATH.")
]
Name = Annotated[str, typer.Argument(help="Name of the reranker.")]


def json_object(text: str) -> dict[str, Any]:
    """Parse an option that is a JSON object; raises BadParameter for anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{text!r} is not a JSON object")
    return value


class Words(list[str]):
    """An option's words; a plain list would be an option that may be given several times."""


def comma_separated(text: str) -> Words:
    """Parse an option that is a list of words with commas between them."""
    return Words(word.strip() for word in text.split(","))


def _object(*names: str, **options: Any) -> Any:
    return typer.Option(*names, parser=json_object, metavar="<json>", **options)


def _list(*names: str, **options: Any) -> Any:
    return typer.Option(*names, parser=comma_separated, metavar="<words>", **options)


# Settings of a reranker that one search may be given another value of.
Candidates = Annotated[
    int | None, typer.Option(help="Documents that each leg of recall looks for.")
]
MaxsimBitTop = Annotated[
    int | None, typer.Option(help="Best by one bit a dimension that MaxSim scores in full.")
]
MaxsimTop = Annotated[
    int | None, typer.Option(help="Best so far that the cross-encoder scores at most.")
]
EarlyExit = Annotated[
    float | None,
    typer.Option(
        help="Unread documents expected in top_k below which it stops reading; 0: it reads all."
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(help="What makes a document relevant, in words, for models that take that."),
]
ListwiseTop = Annotated[
    int | None, typer.Option(help="Best so far that the language model orders.")
]
MinRelevance = Annotated[
    float | None,
    typer.Option(help="Leave out what has less relevance, 0 to 1; 0: leave nothing out."),
]
CrossEncoderPassages = Annotated[
    int | None, typer.Option(help="Best passages of a document that the cross-encoder reads.")
]
Passages = Annotated[int | None, typer.Option(help="Best passages of a document to return.")]
Highlights = Annotated[
    bool | None,
    typer.Option("--highlights/--no-highlights", help="Say which words answer the query's."),
]
Timeout = Annotated[str | None, typer.Option(help="Time limit of a search, such as '500 ms'.")]
Blend = Annotated[
    dict[str, Any] | None,
    _object(
        help="""Weights by stage, {"maxsim": 1, "cross_encoder": 2}; {}: later ones overrule."""
    ),
]
Signals = Annotated[
    dict[str, Any] | None,
    _object(
        help="""What columns add to scores: {"published": {"decay": "90 days", "weight": 0.2}}."""
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(help="Column, or path into JSON, of groups; top_k of these are found."),
]
PerGroup = Annotated[int | None, typer.Option(help="Documents of each group at most.")]
Diversity = Annotated[
    float | None,
    typer.Option(help="How much likeness to better documents counts, 0 to 1; 0: nothing."),
]
DuplicateThreshold = Annotated[
    float | None,
    typer.Option(help="Cosine similarity to a better document above which one is left out."),
]

# What else a search takes.
Query = Annotated[str, typer.Argument(help="What to look for.")]
TopK = Annotated[int, typer.Option(min=1, max=100_000, help="Documents to return.")]
Filter = Annotated[dict[str, Any] | None, _object("--filter", help="""{"column": value, …}.""")]
Stages = Annotated[
    Words | None,
    _list("--stages", help=f"These stages alone, of {', '.join(STAGES)}."),
]
Keys = Annotated[
    Words | None, _list("--keys", help="Candidates in place of recall's, by their keys.")
]
After = Annotated[
    Words | None, _list("--after", help="The next page: the keys of all pages before.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Exact dense recall, never HNSW.")]
Generation = Annotated[int | None, typer.Option(help="Another generation than the one in use.")]
Strict = Annotated[
    bool | None,
    typer.Option(
        "--strict/--no-strict",
        help="Fail rather than degrade; or not even where nothing could be searched at all.",
    ),
]
Measures = Annotated[
    Words | None,
    _list("--measures", help="Of ir-measures; orders are compared by the first."),
]


def search_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Pick from a command's options those that are arguments of a search."""
    names = (
        *("query", "top_k", "candidates", "maxsim_bit_top", "maxsim_top", "early_exit"),
        *("timeout", "blend", "instruction", "listwise_top", "signals", "group_by", "per_group"),
        *("diversity", "duplicate_threshold", "min_relevance", "cross_encoder_passages"),
        *("passages", "highlights", "stages", "keys", "generation", "strict", "after"),
    )
    arguments = {name: parameters[name] for name in names if name in parameters}
    arguments["filter"] = parameters.get("filter_")
    arguments["recall"] = "exact" if parameters.get("exact") else None
    return arguments


def pg_config_path(given: Path | None) -> Path:
    """The pg_config that was named, or that on the PATH."""
    path = given or shutil.which("pg_config")
    if path is None:
        raise KernelError(
            "no pg_config on the PATH: give the server's, such as"
            " --pg-config /usr/lib/postgresql/18/bin/pg_config"
        )
    return Path(path)


def print_cursor(cursor: psycopg.Cursor[Any], *, as_json: bool) -> None:
    """Print a cursor's rows as a table, or as JSON."""
    columns = [column.name for column in cursor.description or ()]
    print_rows(columns, cursor.fetchall(), as_json=as_json)
