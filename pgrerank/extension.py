"""The schema as a Postgres extension: `CREATE EXTENSION pgrerank`.

Its scripts are made of the files in sql/: the newest version of the numbered ones, the first
release and the upgrades of the frozen ones.
"""

from __future__ import annotations

import os
import sys
from importlib.resources.abc import Traversable
from pathlib import Path

from pgrerank import schema
from pgrerank.errors import InstallError
from pgrerank.kernel import pg_config_value

__all__ = ["NAME", "install", "scripts", "write"]

NAME = "pgrerank"
_CONTROL = f"""\
comment = 'Reranking inside Postgres: recall, MaxSim, cross-encoder in one call'
default_version = '{schema.VERSION}'
requires = 'vector, dblink'
schema = 'pgrerank'
relocatable = false
superuser = false
"""
_HEAD = """\
-- complain if script is sourced in psql, rather than by CREATE or ALTER EXTENSION
\\echo Use "CREATE EXTENSION pgrerank" to load this file. \\quit

"""


def scripts() -> dict[str, str]:
    """The extension's files by name: its control file, a script a version, one an upgrade."""
    made: dict[str, list[Traversable]] = {}
    for file in schema.released_files(schema.VERSION):
        made[file.name.removesuffix(".sql")] = [file]
    made[schema.VERSION] = schema.sql_files()
    return {f"{NAME}.control": _CONTROL} | {
        f"{NAME}--{name}.sql": _HEAD + "\n".join(file.read_text("utf-8") for file in files)
        for name, files in made.items()
    }


def write(folder: Path) -> list[Path]:
    """Write the extension's files into a folder; returns their paths.

    Raises InstallError when it can't be written to.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in scripts().items():
            path = folder / name
            path.write_text(text, "utf-8")
            path.chmod(0o644)
            written.append(path)
    except OSError as error:
        raise InstallError(
            f"can't write the extension to {error.filename or folder}: {error.strerror}"
        ) from error
    return written


def install(pg_config: Path) -> list[Path]:
    """Put the extension where the server of this pg_config looks for extensions.

    Raises KernelError when pg_config does not run, InstallError without the right to write.
    """
    folder = Path(pg_config_value(pg_config, "--sharedir")) / "extension"
    if not os.access(folder, os.W_OK):
        raise InstallError(
            f"no right to write to {folder}, where this Postgres keeps its extensions: run\n"
            f"  sudo {sys.executable} -m pgrerank extension install --pg-config {pg_config}"
        )
    return write(folder)
