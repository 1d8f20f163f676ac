"""What a queryset was filtered by, as the `filter` of a search."""

from __future__ import annotations

from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.core.exceptions import FieldError
from django.db.models.expressions import Col
from django.db.models.fields.json import KeyTransform
from django.db.models.lookups import Lookup
from django.db.models.sql.where import AND, OR, NothingNode, WhereNode

__all__ = ["search_filter"]

_OPERATORS = {"exact": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "isnull": "is null"}
_OPERATORS |= {"in": "in", "range": "between"}
_PATTERNS = {
    "contains": ("like", "%{}%"),
    "startswith": ("like", "{}%"),
    "endswith": ("like", "%{}"),
    "iexact": ("ilike", "{}"),
    "icontains": ("ilike", "%{}%"),
    "istartswith": ("ilike", "{}%"),
    "iendswith": ("ilike", "%{}"),
}


def search_filter(where: Any, table: str) -> dict[str, Any]:
    """Make a `filter` of conditions on a table's own columns, or what is in its columns of JSON.

    Raises FieldError for a condition that a search can't be given.
    """
    if isinstance(where, NothingNode):
        return {"or": []}
    if isinstance(where, WhereNode) and where.connector in (AND, OR):
        parts = [search_filter(child, table) for child in where.children]
        joined = {where.connector.lower(): parts}
        return {"not": joined} if where.negated else joined
    if isinstance(where, Lookup) and not hasattr(where.rhs, "resolve_expression"):
        name, condition = _name(where.lhs, table), _condition(where)
        if name is not None and condition is not None:
            return {name: condition}
    raise FieldError(
        f"rerank() can't search among what filter() found by {where}: a search takes columns of its"
        " own table, compared with values by exact, in, range, gt, gte, lt, lte, isnull, contains,"
        " startswith, endswith and their kin. Put that filter() after rerank(), to choose among"
        " what is found, or have its documents ranked alone: rerank(…, keys=queryset)"
    )


def _name(side: Any, table: str) -> str | None:
    """The name of a column, or of a path into one of JSON; None for what is neither."""
    if isinstance(side, KeyTransform):
        name, key = _name(side.lhs, table), side.key_name
        return name and f'{name}."{key}"'
    if not isinstance(side, Col) or side.alias != table:
        return None
    column = str(side.target.column)
    is_plain = "." not in column and column not in ("and", "or", "not", "boosts")
    return column if is_plain else f'"{column}"'


def _condition(lookup: Any) -> dict[str, Any] | None:
    """The operator and the operand of a filter; None where it has none for a lookup."""
    word, value = lookup.lookup_name, lookup.rhs
    if hasattr(lookup, "postgres_operator"):
        known = lookup.postgres_operator in ("@>", "<@", "&&")
        return {lookup.postgres_operator: _plain(value)} if known else None
    if word in _PATTERNS:
        operator, pattern = _PATTERNS[word]
        escaped = str(value).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return {operator: pattern.format(escaped)}
    if word not in _OPERATORS or (word == "isnull" and isinstance(lookup.lhs, KeyTransform)):
        return None  # Django tells a key that is not there from a null, a search does not
    if word == "in":
        value = [one for one in value if one is not None]
    return {_OPERATORS[word]: _plain(value)}


def _plain(value: Any) -> Any:
    """A value as JSON has it, by the text that Postgres reads."""
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds}.{value.microseconds:06} seconds"
    return str(value) if isinstance(value, date | time | Decimal | UUID) else value
