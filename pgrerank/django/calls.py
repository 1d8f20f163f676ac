"""Calls of pgrerank's functions with the placeholders of Django's, which have no names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgrerank.catalog import call_statement

__all__ = ["positional_call"]


def positional_call(
    function: str, arguments: Mapping[str, Any], casts: Mapping[str, str] | None = None
) -> tuple[str, tuple[Any, ...]]:
    """Make the statement and the parameters of a call of pgrerank.FUNCTION."""
    statement, values = call_statement(function, arguments, casts=casts)
    return statement.as_string() % dict.fromkeys(values, "%s"), tuple(values.values())
