"""The commands `pgrerank native …`."""

from __future__ import annotations

from typing import Annotated

import psycopg
import typer

from pgrerank.cli.options import Dsn, Json, PgConfig, pg_config_path, print_cursor
from pgrerank.install import kernel, schema
from pgrerank.terminal import note, report_errors

native_app = typer.Typer(
    help="The native MaxSim kernel: install, status.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@native_app.command(
    "install",
    epilog="Example: sudo pgrerank native install --pg-config /usr/lib/postgresql/18/bin/pg_config"
    " --dsn 'dbname=app user=postgres'",
)
def install(
    pg_config: PgConfig = None,
    dsn: Annotated[
        str | None,
        typer.Option(help="Also create the extension in this database, as a superuser."),
    ] = None,
) -> None:
    """Build the kernel for a server on this machine, and install it there."""
    with report_errors():
        path = pg_config_path(pg_config)
        kernel.install(path)
        version = kernel.pg_config_value(path, "--version")
        note(f"the kernel is installed for {version}; sessions that have an older one keep it")
        if dsn is None:
            note(
                "next, as a superuser, in each database that has pgrerank:"
                f"\n  CREATE EXTENSION {kernel.EXTENSION};"
            )
            return
        with psycopg.connect(dsn, autocommit=True) as connection:
            engine = schema.create_kernel(connection)
            note(f"database {connection.info.dbname}: MaxSim by {engine}")


@native_app.command("status", epilog="Example: pgrerank native status --dsn dbname=app --json")
def status(dsn: Dsn = "", as_json: Json = False) -> None:
    """Whether a database's server has the kernel, what MaxSim runs on, and what asks workers."""
    with report_errors(), schema.connect(dsn) as connection:
        cursor = connection.execute(
            "SELECT %s AS maxsim,"
            " CASE WHEN pgrerank.has_native_client() THEN 'native' ELSE 'dblink' END AS client,"
            " e.default_version AS available, e.installed_version AS created"
            " FROM (VALUES (%s)) wanted (name) LEFT JOIN pg_available_extensions e USING (name)",
            (schema.maxsim_engine(connection), kernel.EXTENSION),
        )
        print_cursor(cursor, as_json=as_json)
