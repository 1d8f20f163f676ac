"""Installs and removes the database's half: the files in sql/, in one transaction."""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from typing import Any

import psycopg

from pgrerank.errors import InstallError

__all__ = [
    "create_kernel",
    "install",
    "installed_version",
    "maxsim_engine",
    "sql_files",
    "uninstall",
]


def sql_files() -> list[Traversable]:
    """The numbered files that make the schema, in their order."""
    folder = importlib.resources.files("pgrerank") / "sql"
    return sorted(
        (file for file in folder.iterdir() if file.name[0].isdigit()), key=lambda file: file.name
    )


def install(connection: psycopg.Connection[Any]) -> str:
    """Create or renew the schema `pgrerank`; returns its version.

    One transaction; running it again changes nothing. Needs CREATE on the database, and the
    extensions vector (0.7 or newer) and dblink there or the right to create them. Raises
    InstallError, saying what is missing.
    """
    try:
        with connection.transaction():
            for file in [_file("install.sql"), *sql_files()]:
                connection.execute(file.read_bytes())
    except psycopg.Error as error:
        raise InstallError(_explain("install pgrerank in", connection, error)) from error
    version = installed_version(connection)
    assert version is not None
    return version


def uninstall(connection: psycopg.Connection[Any]) -> None:
    """Drop the schema `pgrerank`, its triggers and its foreign server; source tables stay."""
    try:
        with connection.transaction():
            connection.execute("SET LOCAL client_min_messages = warning")
            connection.execute(_file("uninstall.sql").read_bytes())
    except psycopg.Error as error:
        raise InstallError(_explain("remove pgrerank from", connection, error)) from error


def installed_version(connection: psycopg.Connection[Any]) -> str | None:
    """Version of the installed schema, None where there is none."""
    row = connection.execute("SELECT to_regprocedure('pgrerank.schema_version()')").fetchone()
    if row is None or row[0] is None:
        return None
    version = connection.execute("SELECT pgrerank.schema_version()").fetchone()
    return None if version is None else str(version[0])


def create_kernel(connection: psycopg.Connection[Any]) -> str:
    """Create the native kernel's extension in a database that has pgrerank; returns the engine.

    Raises InstallError for a role that is no superuser, or a server without the kernel.
    """
    try:
        with connection.transaction():
            connection.execute("SET LOCAL client_min_messages = warning")
            connection.execute("CREATE EXTENSION IF NOT EXISTS pgrerank_native")
    except psycopg.Error as error:
        raise InstallError(_explain("create the kernel in", connection, error)) from error
    return maxsim_engine(connection)


def maxsim_engine(connection: psycopg.Connection[Any]) -> str:
    """What scores MaxSim in a database that has pgrerank: ``native (avx512)``, or ``worker``."""
    row = connection.execute("SELECT pgrerank._has_native()").fetchone()
    if row is None or not row[0]:
        return "worker"
    row = connection.execute("SELECT pgrerank.maxsim_instructions()").fetchone()
    return f"native ({row[0]})" if row else "native"


def _file(name: str) -> Traversable:
    return importlib.resources.files("pgrerank") / "sql" / name


def _explain(deed: str, connection: psycopg.Connection[Any], error: psycopg.Error) -> str:
    hint = f"\n{error.diag.message_hint}" if error.diag.message_hint else ""
    what = error.diag.message_primary or str(error)
    return f"can't {deed} database {connection.info.dbname} as {connection.info.user}: {what}{hint}"
