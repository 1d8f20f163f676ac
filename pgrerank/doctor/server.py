"""Extensions, versions, and the native kernel."""

from __future__ import annotations

from pgrerank.doctor.finding import Connection, Found, Severity, ask
from pgrerank.errors import InstallError
from pgrerank.install import schema as installed


def versions(connection: Connection) -> Found:
    """The extensions that pgrerank needs, and whether the server has newer ones."""
    rows = ask(
        connection,
        "SELECT w.name, e.extversion AS present, a.default_version AS newest,"
        " to_regnamespace('pgrerank') IS NOT NULL AS is_installed"
        " FROM (VALUES ('vector'), ('dblink'), ('pgrerank'), ('pgrerank_native')) w (name)"
        " LEFT JOIN pg_extension e ON e.extname = w.name"
        " LEFT JOIN pg_available_extensions a ON a.name = w.name",
    )
    for row in rows:
        about = f"extension {row.name}"
        if row.present is None:
            if row.name == "vector" or (row.name == "dblink" and row.is_installed):
                message = "is not in this database"
                if row.newest is None:
                    message += ", nor on the server: install its package there first"
                schema = " SCHEMA pgrerank" if row.name == "dblink" else ""
                yield Severity.ERROR, about, message, f"CREATE EXTENSION {row.name}{schema};"
            continue
        update = f"ALTER EXTENSION {row.name} UPDATE;"
        if row.newest is not None and row.present != row.newest:
            message = f"has version {row.present}, and the server has {row.newest}"
            yield Severity.NOTE, about, message, update


def schema(connection: Connection) -> Found:
    """Whether pgrerank is installed, in a version that this package goes with."""
    present = installed.installed_version(connection)
    try:
        installed.check_version(present, connection.info.dbname)
    except InstallError as error:
        message, _, remedy = str(error).rpartition(": ")
        about = f"database {connection.info.dbname}"
        remedy = remedy.removeprefix("run ").partition(", or ")[0]
        yield Severity.ERROR, about, message.removeprefix(about).strip(), remedy


def kernel(connection: Connection) -> Found:
    """Whether Postgres scores MaxSim itself."""
    [row] = ask(
        connection,
        "SELECT pgrerank.has_native_kernel() AS is_native, EXISTS (SELECT"
        " FROM pgrerank.generations g WHERE g.late_interaction_model IS NOT NULL) AS is_wanted,"
        " EXISTS (SELECT FROM pg_available_extensions a WHERE a.name = 'pgrerank_native')"
        " AS is_there",
    )
    if row.is_wanted and not row.is_native:
        message = "token vectors go to a worker for MaxSim, which takes several times as long"
        remedy = "CREATE EXTENSION pgrerank_native;" if row.is_there else "pgrerank native install"
        yield Severity.NOTE, "the native kernel", f"is not there: {message}", remedy
