"""Installs, upgrades and removes the database's half: files in sql/, in one transaction."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import tuple_row

from pgrerank import __version__
from pgrerank.errors import InstallError
from pgrerank.install.scripts import SCRIPTS, Scripts

__all__ = [
    "VERSION",
    "check_version",
    "connect",
    "create_kernel",
    "install",
    "installed_version",
    "maxsim_engine",
    "uninstall",
]

VERSION = __version__
"""Version of the schema that `install` makes and that a worker of this package wants."""


def install(connection: psycopg.Connection[Any], scripts: Scripts = SCRIPTS) -> str:
    """Create, upgrade or renew the schema `pgrerank`; returns its version.

    One transaction; running it again changes nothing. Rerankers, their vectors and what waits to
    be encoded stay. Needs CREATE on the database, and the extensions vector (0.8 or newer) and
    dblink there or the right to create them. Raises InstallError, saying what is missing.
    """
    present = installed_version(connection)
    if present is not None and _parts(present) > _parts(scripts.version):
        raise InstallError(
            f"database {connection.info.dbname} has pgrerank {present}, newer than this package, "
            f"{scripts.version}: run pip install 'pgrerank>={present}'"
        )
    is_current = present in (None, scripts.version)
    files = scripts.numbered() if is_current else scripts.upgrade(str(present))
    try:
        with connection.transaction():
            for file in scripts.wrapped(files):
                connection.execute(file.read_bytes())
    except psycopg.Error as error:
        raise InstallError(_explain("install pgrerank in", connection, error)) from error
    return scripts.version


def uninstall(connection: psycopg.Connection[Any]) -> None:
    """Drop the schema `pgrerank`, its triggers and its foreign server; source tables stay."""
    try:
        with connection.transaction():
            connection.execute("SET LOCAL client_min_messages = warning")
            connection.execute(SCRIPTS.uninstall.read_bytes())
    except psycopg.Error as error:
        raise InstallError(_explain("remove pgrerank from", connection, error)) from error


def installed_version(connection: psycopg.Connection[Any]) -> str | None:
    """Version of the installed schema, None where there is none."""
    cursor = connection.cursor(row_factory=tuple_row)
    row = cursor.execute("SELECT to_regprocedure('pgrerank.schema_version()')").fetchone()
    if row is None or row[0] is None:
        return None
    version = cursor.execute("SELECT pgrerank.schema_version()").fetchone()
    return None if version is None else str(version[0])


def connect(dsn: str, **options: Any) -> psycopg.Connection[Any]:
    """Open an autocommit connection to a database whose schema fits this package.

    `options` are further ones of psycopg.connect. Raises InstallError where the schema is not there
    or of another version, saying which to bring up to date, psycopg.Error as psycopg.connect does.
    """
    connection = psycopg.connect(dsn, autocommit=True, **options)
    try:
        check_version(installed_version(connection), connection.info.dbname)
    except BaseException:
        connection.close()
        raise
    return connection


def check_version(present: str | None, database: str) -> None:
    """See that this package fits a database's schema, by major and minor version.

    Raises InstallError, saying which of the two to bring up to date.
    """
    if present is None:
        raise InstallError(f"database {database} has no pgrerank: run pgrerank install")
    theirs, ours = _parts(present)[:2], _parts(VERSION)[:2]
    if theirs != ours:
        remedy = (
            "run pgrerank install, or ALTER EXTENSION pgrerank UPDATE where it is one"
            if theirs < ours
            else f"run pip install 'pgrerank[worker]=={theirs[0]}.{theirs[1]}.*'"
        )
        raise InstallError(
            f"database {database} has pgrerank {present}, this package is {VERSION}: {remedy}"
        )


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
    row = connection.execute("SELECT pgrerank.has_native_kernel()").fetchone()
    if row is None or not row[0]:
        return "worker"
    row = connection.execute("SELECT pgrerank.maxsim_instructions()").fetchone()
    return f"native ({row[0]})" if row else "native"


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _explain(deed: str, connection: psycopg.Connection[Any], error: psycopg.Error) -> str:
    hint = f"\n{error.diag.message_hint}" if error.diag.message_hint else ""
    what = error.diag.message_primary or str(error)
    return f"can't {deed} database {connection.info.dbname} as {connection.info.user}: {what}{hint}"
