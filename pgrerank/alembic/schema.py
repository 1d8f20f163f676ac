"""Runs the files of sql/ in a migration, online through any driver, or printed by --sql."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources.abc import Traversable

from alembic.operations import Operations

from pgrerank.install.scripts import SCRIPTS

__all__ = ["run_install", "run_uninstall", "run_upgrade"]

_QUOTE = "$pgrerank_migration$"


def run_install(operations: Operations, version: str) -> None:
    """Make a version of the schema. Raises InstallError for one that was never released."""
    _run(operations, SCRIPTS.wrapped(SCRIPTS.release(version)))


def run_upgrade(operations: Operations, since: str, version: str) -> None:
    """Upgrade from one version to another. Raises InstallError where no upgrade leads there."""
    _run(operations, SCRIPTS.wrapped(SCRIPTS.upgrade(since, version)))


def run_uninstall(operations: Operations) -> None:
    """Drop the schema, as `pgrerank uninstall` does."""
    _run(operations, [SCRIPTS.uninstall])


def _run(operations: Operations, files: Sequence[Traversable]) -> None:
    """Run files as one statement, and so in one transaction, whatever the mode and the driver.

    asyncpg takes no script of several statements, and a colon or percent sign is no parameter's.
    """
    script = SCRIPTS.text(files)
    context = operations.get_context()
    if context.as_sql:
        context.impl.static_output(script)
        return
    operations.get_bind().exec_driver_sql(
        f"DO {_QUOTE[:-1]}_block$ BEGIN EXECUTE {_QUOTE}{script}{_QUOTE}; END {_QUOTE[:-1]}_block$",
        execution_options={"no_parameters": True},
    )
