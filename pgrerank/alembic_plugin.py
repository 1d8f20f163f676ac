"""The plugin that Alembic loads by its entry point.

Alembic loads plugins while it is itself half imported, so nothing that needs it is imported before
a comparison runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]


def setup(plugin: Plugin) -> None:
    """Register the comparison of rerankers under the plugin's name, `pgrerank`."""
    from alembic.util import DispatchPriority

    plugin.add_autogenerate_comparator(
        _leave_schema_alone, "schema", "pgrerank schema", priority=DispatchPriority.FIRST
    )
    plugin.add_autogenerate_comparator(
        _compare, "schema", "pgrerank rerankers", priority=DispatchPriority.LAST
    )


def _leave_schema_alone(_: Any, __: Any, schemas: set[str | None]) -> Any:
    """Spare include_schemas the reflection of our own tables."""
    from alembic.util import PriorityDispatchResult

    schemas.discard("pgrerank")
    return PriorityDispatchResult.CONTINUE


def _compare(*arguments: Any) -> Any:
    from alembic.util import PriorityDispatchResult

    from pgrerank.alembic.autogenerate import compare

    compare(*arguments)
    return PriorityDispatchResult.CONTINUE
