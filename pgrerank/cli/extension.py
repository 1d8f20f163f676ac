"""The commands `pgrerank extension …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgrerank.cli.options import PgConfig, pg_config_path
from pgrerank.install import extension, schema
from pgrerank.terminal import note, report_errors

extension_app = typer.Typer(
    help="The schema as a Postgres extension: install, write.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@extension_app.command(
    "install",
    epilog="Example: sudo pgrerank extension install"
    " --pg-config /usr/lib/postgresql/18/bin/pg_config",
)
def install(
    pg_config: PgConfig = None,
) -> None:
    """Put the extension where a server on this machine finds it."""
    with report_errors():
        paths = extension.install(pg_config_path(pg_config))
        note(f"extension {extension.NAME} {schema.VERSION} is in {paths[0].parent}")
        note(
            "next, in each database: CREATE EXTENSION pgrerank CASCADE;"
            " or, where it is: ALTER EXTENSION pgrerank UPDATE;"
        )


@extension_app.command("write", epilog="Example: pgrerank extension write ./image/extension")
def write(
    folder: Annotated[Path, typer.Argument(help="Where to; made if need be.")],
) -> None:
    """Write the extension's files into a folder, for an image or a package."""
    with report_errors():
        for path in extension.write(folder):
            note(str(path))
