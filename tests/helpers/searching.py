"""Searches with named arguments, for tests that give many."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from hypothesis import HealthCheck, settings
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb


def property_of(max_examples: int) -> settings:
    """Hypothesis's settings for a property that is checked by searches of one database."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


class Searching:
    """Calls a function with presets and named arguments, of which objects become JSON."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        presets: dict[str, Any],
        statement: LiteralString = "SELECT * FROM pgrerank.{function}({named})",
    ) -> None:
        self.connection = connection
        self._presets = presets
        self._statement = statement
        self.vectors: dict[int, Any] = {}

    def __call__(self, function: str = "documents_search", **arguments: Any) -> list[dict]:
        """Rows as dicts."""
        given = self._presets | {
            name: Jsonb(value) if isinstance(value, dict) else value
            for name, value in arguments.items()
        }
        named = ", ".join(f"{name} => %({name})s" for name in given)
        cursor = self.connection.cursor(row_factory=dict_row)
        statement = self._statement.format(function=function, named=named)
        return cursor.execute(statement, given).fetchall()
