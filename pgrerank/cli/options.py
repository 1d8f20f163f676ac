"""What the commands share: the program, and options."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from pgrerank.errors import KernelError
from pgrerank.terminal import print_rows

app = typer.Typer(
    name="pgrerank",
    help="Rerank inside Postgres: recall, MaxSim and cross-encoder in one SQL call.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Dsn = Annotated[
    str,
    typer.Option(help="Connection string of the database; libpq's variables (PGHOST …) serve too."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
PgConfig = Annotated[
    Path | None, typer.Option(help="The server's pg_config; by default that on the PATH.")
]
Name = Annotated[str, typer.Argument(help="Name of the reranker.")]


def pg_config_path(given: Path | None) -> Path:
    """The pg_config that was named, or that on the PATH."""
    found = given or shutil.which("pg_config")
    if found is None:
        raise KernelError(
            "no pg_config on the PATH: give the server's, such as"
            " --pg-config /usr/lib/postgresql/18/bin/pg_config"
        )
    return Path(found)


def print_cursor(cursor: psycopg.Cursor[Any], *, as_json: bool) -> None:
    """Print a cursor's rows as a table, or as JSON."""
    columns = [column.name for column in cursor.description or ()]
    print_rows(columns, cursor.fetchall(), as_json=as_json)
