"""How things stand: rerankers, queues, workers, models, generations, and the last searches."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from starlette.requests import Request
from starlette.responses import Response

from pgrerank.errors import PgrerankError
from pgrerank.studio.jobs import message_of
from pgrerank.studio.state import names_of_rerankers, studio_of, whose

_SEARCHES = 50
_TABLES: dict[str, sql.SQL | sql.Composed] = {
    "rerankers": sql.SQL("SELECT * FROM pgrerank.status"),
    "workers": sql.SQL("SELECT * FROM pgrerank.workers"),
    "models": sql.SQL(
        "SELECT name, kind, loader, source, revision, dims, max_tokens FROM pgrerank.models"
        " ORDER BY kind, name"
    ),
    "generations": sql.SQL(
        "SELECT g.*, g.number = r.generation AS is_used FROM pgrerank.generations g"
        " JOIN pgrerank.rerankers r ON r.name = g.reranker ORDER BY g.reranker, g.number"
    ),
    "searches": sql.SQL(
        "SELECT reranker, query, times, stage, degraded, reason, cardinality(keys) AS found,"
        " searched_at FROM pgrerank.searches ORDER BY id DESC LIMIT {}"
    ).format(_SEARCHES),
}


def status_page(request: Request) -> Response:
    """All tables; one that the role may not read says so in its place."""
    studio = studio_of(request)
    tables: dict[str, list[dict[str, Any]]] = {}
    errors: dict[str, tuple[str, str]] = {}
    with studio.connections.connection() as connection:
        for name, statement in _TABLES.items():
            try:
                tables[name] = _rows(connection, statement)
            except (psycopg.errors.InsufficientPrivilege, PgrerankError) as error:
                tables[name], errors[name] = [], message_of(error)
        return studio.page(
            request,
            "status",
            tables=tables,
            errors=errors,
            rerankers=names_of_rerankers(connection),
            whose=whose(connection),
        )


def _rows(
    connection: psycopg.Connection[Any], statement: sql.SQL | sql.Composed
) -> list[dict[str, Any]]:
    cursor = connection.cursor(row_factory=dict_row)
    return cursor.execute(statement).fetchall()
