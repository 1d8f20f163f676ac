"""The schema as a Postgres extension: `CREATE EXTENSION pgrerank`.

Its scripts are made of the files in sql/: one for each version, one for each upgrade.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from pgrerank.errors import InstallError
from pgrerank.install.kernel import pg_config_value
from pgrerank.install.scripts import SCRIPTS, Scripts

__all__ = ["NAME", "extension_files", "install", "write"]

NAME = "pgrerank"
_CONTROL = """\
comment = 'Reranking inside Postgres: recall, MaxSim, cross-encoder in one call'
default_version = '{version}'
requires = 'vector, dblink'
schema = 'pgrerank'
relocatable = false
superuser = false
"""
_HEAD = """\
-- complain if script is sourced in psql, rather than by CREATE or ALTER EXTENSION
\\echo Use "CREATE EXTENSION pgrerank" to load this file. \\quit

"""


def extension_files(scripts: Scripts = SCRIPTS) -> dict[str, str]:
    """The extension's files by name: its control file, a script a version, one an upgrade."""
    versions = scripts.versions()
    made = {version: scripts.release(version) for version in versions}
    for since, version in itertools.pairwise(versions):
        made[f"{since}--{version}"] = scripts.upgrade(since, version)
    return {f"{NAME}.control": _CONTROL.format(version=scripts.version)} | {
        f"{NAME}--{name}.sql": _HEAD + "\n".join(file.read_text("utf-8") for file in files)
        for name, files in made.items()
    }


def write(folder: Path, scripts: Scripts = SCRIPTS) -> list[Path]:
    """Write the extension's files into a folder; returns their paths.

    Raises InstallError when it can't be written to.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in extension_files(scripts).items():
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
