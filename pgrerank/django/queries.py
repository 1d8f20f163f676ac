"""A search as a join of Django's queries: lazy, and one statement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import NotSupportedError, connections
from django.db.models import (
    BooleanField,
    FloatField,
    IntegerField,
    JSONField,
    Manager,
    Model,
    QuerySet,
    TextField,
)
from django.db.models.expressions import Col
from django.db.models.sql.constants import INNER

from pgrerank.django.calls import positional_call
from pgrerank.django.filters import search_filter
from pgrerank.search import ARGUMENTS, COLUMNS, key_columns

__all__ = ["RerankerManager", "RerankerQuerySet"]

_FIELDS: Mapping[str, Any] = {
    "real": FloatField,
    "integer": IntegerField,
    "text": TextField,
    "boolean": BooleanField,
    "jsonb": JSONField,
}


class RerankerQuerySet(QuerySet):
    """A queryset that a reranker can search."""

    def rerank(
        self,
        query: str | None = None,
        *,
        reranker: str | None = None,
        key: str = "pk",
        prefix: str = "",
        **arguments: Any,
    ) -> RerankerQuerySet:
        """Search what was filtered so far, best first, by the reranker over the model's table.

        The reranker is by default the one named as the table; `arguments` are those of
        pgrerank.NAME_search. What it returns becomes attributes: `score`, `rank`, `stage`,
        `degraded`, `relevance`, `passage` and so on, with `prefix` before their names where the
        model has fields of these. `key` is the field of the reranker's key, if not the primary
        key. `keys` and `after` may be instances, or a queryset. A filter() from here on chooses
        among what was found.

        Raises FieldError for a filter that a search can't be given, TypeError for an argument that
        it does not have, or after a slice or a union, NotSupportedError where it is not Postgres.
        """
        found = self.all()
        _check(found, arguments)
        field = found.model._meta.pk if key == "pk" else found.model._meta.get_field(key)
        table = found.query.get_initial_alias()
        asked = {**_values(arguments, field), "query": query}
        if found.query.where:
            given = [search_filter(found.query.where, table), asked.get("filter")]
            asked["filter"] = {"and": [one for one in given if one is not None]}
            found.query.clear_where()
        name = reranker or found.model._meta.db_table
        alias = found.query.join(_Search(table, name, field, asked))
        columns = {prefix + column: _column(found.model, alias, column) for column in COLUMNS}
        ranked: RerankerQuerySet = found.annotate(**columns).order_by(f"{prefix}rank")
        return ranked


class RerankerManager(Manager.from_queryset(RerankerQuerySet)):  # type: ignore[misc]
    """A manager with `rerank`, and what else a queryset has."""


class _Search:
    """JOIN pgrerank.NAME_search(…) by its key, where Django's queries expect a Join of a table."""

    join_type: str | None = INNER
    filtered_relation = None
    nullable = False

    def __init__(
        self,
        parent_alias: str,
        reranker: str,
        field: Any,
        arguments: Mapping[str, Any],
        alias: str | None = None,
    ) -> None:
        self.parent_alias, self.reranker, self.field = parent_alias, reranker, field
        self.arguments, self.table_alias = arguments, alias
        self.table_name = f"{reranker}_search"

    def relabeled_clone(self, change_map: Mapping[Any, str]) -> _Search:
        parent = change_map.get(self.parent_alias, self.parent_alias)
        alias = change_map.get(self.table_alias, self.table_alias)
        return _Search(parent, self.reranker, self.field, self.arguments, alias)

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        columns = [part.column for part in getattr(self.field, "fields", [self.field])]
        keys = f"{self.field.rel_db_type(connection)}[]"
        if len(columns) > 1:
            keys = f'pgrerank."{self.reranker}_key"[]'
        call, parameters = positional_call(
            self.table_name, self.arguments, {"keys": keys, "after": keys}
        )
        quote = connection.ops.quote_name
        alias, parent = map(compiler.quote_name_unless_alias, (self.table_alias, self.parent_alias))
        matched = " AND ".join(
            f"{alias}.{quote(found)} = {parent}.{quote(column)}"
            for found, column in zip(key_columns(columns), columns, strict=True)
        )
        return f"{self.join_type} ({call}) {alias} ON ({matched})", parameters


def _check(queryset: Any, arguments: Mapping[str, Any]) -> None:
    if connections[queryset.db].vendor != "postgresql":
        raise NotSupportedError(f"rerank() needs Postgres, {queryset.db!r} is another database")
    if queryset.query.is_sliced or queryset.query.combinator:
        raise TypeError("rerank() takes a queryset before it is sliced or combined: use top_k=…")
    taken = {*ARGUMENTS, "keys", "after"} - {"query"}
    for name in arguments.keys() - taken:
        raise TypeError(f"rerank() has no argument {name!r}: there are {', '.join(sorted(taken))}")


def _values(arguments: Mapping[str, Any], field: Any) -> dict[str, Any]:
    """Arguments as psycopg sends them: instances by their keys, a vector as text."""
    values = dict(arguments)
    for name in ("keys", "after"):
        if values.get(name) is not None:
            values[name] = [
                getattr(one, field.attname) if isinstance(one, Model) else one
                for one in values[name]
            ]
    if values.get("query_embedding") is not None:
        values["query_embedding"] = str([float(one) for one in values["query_embedding"]])
    return values


def _column(model: type[Model], alias: str, name: str) -> Any:
    field = _FIELDS[COLUMNS[name]](null=True)
    field.set_attributes_from_name(name)
    field.model = model  # by which Django tells expressions apart
    return Col(alias, field)
