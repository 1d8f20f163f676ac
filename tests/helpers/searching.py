"""Searches with named arguments, for tests that give many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgrerank.install import schema


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


class NamedSearch:
    """Calls documents_search with a query, or a preset one, and arguments by name; rows as dicts.

    The connection's rows are dicts.
    """

    def __init__(self, connection: psycopg.Connection[Any], query: str) -> None:
        self.connection = connection
        self._query = query

    def __call__(self, *query: str | None, **arguments: Any) -> list[dict[str, Any]]:
        given = {"query": query[0] if query else self._query} | arguments
        named = ", ".join(f"{name} => %({name})s" for name in given)
        search = f"SELECT * FROM pgrerank.documents_search({named})"
        return self.connection.execute(search, given).fetchall()


def use_engine(connection: psycopg.Connection[Any], engine: str) -> None:
    """Have MaxSim scored by "kernel" or "worker" here; skips where there is no kernel."""
    has_kernel = schema.maxsim_engine(connection) != "worker"
    if engine == "kernel" and not has_kernel:
        pytest.skip("the server has no native kernel")
    if engine == "worker" and has_kernel:
        connection.execute("DROP EXTENSION pgrerank_native CASCADE")


CLIENTS = ("native", "dblink")


def use_client(connection: psycopg.Connection[Any], client: str) -> None:
    """Have workers asked by "native" or "dblink" here; skips where the former is not there."""
    [has_native_client] = connection.execute("SELECT pgrerank.has_native_client()").fetchone()
    if client == "native" and not has_native_client:
        pytest.skip("the server has no native client")
    if client == "dblink" and has_native_client:
        connection.execute("DROP EXTENSION pgrerank_native CASCADE")


def each_client(connection: psycopg.Connection[Any]) -> Iterator[str]:
    """Each of the clients that there are, in use meanwhile."""
    [has_native_client] = connection.execute("SELECT pgrerank.has_native_client()").fetchone()
    for client in CLIENTS if has_native_client else ("dblink",):
        use_client(connection, client)
        yield client
