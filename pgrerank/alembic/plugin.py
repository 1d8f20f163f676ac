"""The plugin `pgrerank` of Alembic's autogeneration.

It is registered when `pgrerank.alembic` is imported, not by an entry point: Alembic before 1.20.1
fails at its own import where any package has an entry point that names a module.
"""

from __future__ import annotations

from typing import Any

from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult

from pgrerank.alembic.autogenerate import compare

__all__ = ["register"]


def register() -> None:
    """Make the plugin known to Alembic."""
    plugin = Plugin("pgrerank")
    plugin.add_autogenerate_comparator(
        _leave_schema_alone, "schema", "pgrerank schema", priority=DispatchPriority.FIRST
    )
    plugin.add_autogenerate_comparator(
        _compare, "schema", "pgrerank rerankers", priority=DispatchPriority.LAST
    )


def _leave_schema_alone(_: Any, __: Any, schemas: set[str | None]) -> Any:
    """Spare include_schemas the reflection of our own tables."""
    schemas.discard("pgrerank")
    return PriorityDispatchResult.CONTINUE


def _compare(*arguments: Any) -> Any:
    compare(*arguments)
    return PriorityDispatchResult.CONTINUE
