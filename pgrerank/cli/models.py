"""The commands `pgrerank models …`."""

from __future__ import annotations

from typing import Annotated, Any

import psycopg
import typer

from pgrerank.catalog import call
from pgrerank.cli.options import Dsn, Json, json_object, print_cursor
from pgrerank.models import Kind, Loader
from pgrerank.terminal import note, report_errors

models_app = typer.Typer(
    help="The registry of models: list, add, drop.", no_args_is_help=True, rich_markup_mode="rich"
)


@models_app.command("list", epilog="Example: pgrerank models list --json")
def list_models(dsn: Dsn = "", as_json: Json = False) -> None:
    """The registered models."""
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(
            "SELECT name, kind, loader, source, revision, dims, max_tokens"
            " FROM pgrerank.models ORDER BY name"
        )
        print_cursor(cursor, as_json=as_json)


@models_app.command(
    "add",
    epilog="Example: pgrerank models add minilm --kind embedding"
    " --source sentence-transformers/all-MiniLM-L6-v2",
)
def add_model(
    name: Annotated[str, typer.Argument(help="Name to register it by.")],
    kind: Annotated[Kind, typer.Option(help="embedding, late_interaction or cross_encoder.")],
    source: Annotated[str, typer.Option(help="Hub name, folder, or package://PACKAGE/FOLDER.")],
    dsn: Dsn = "",
    loader: Annotated[
        Loader | None, typer.Option(help="What reads it; by default by kind.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    options: Annotated[
        dict[str, Any] | None,
        typer.Option(parser=json_object, metavar="<json>", help="The loader's, as an object."),
    ] = None,
) -> None:
    """Load a model once, to learn its dimensions, and register it."""
    from pgrerank.catalog import register_model

    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        spec = register_model(
            connection, name, kind, source, loader=loader, revision=revision, options=options
        )
        note(f"model {spec.name} is registered: {spec.kind}, loaded by {spec.loader}")


@models_app.command("drop", epilog="Example: pgrerank models drop minilm")
def drop_model(name: Annotated[str, typer.Argument(help="Its name.")], dsn: Dsn = "") -> None:
    """Forget a model that no reranker uses."""
    with report_errors(), psycopg.connect(dsn, autocommit=True) as connection:
        call(connection, "drop_model", {"name": name})
        note(f"model {name} is forgotten")
