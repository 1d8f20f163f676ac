"""DDL elements: what table events and Alembic's operations execute.

Each is one call of a SQL function, with literals in place of parameters, so that a migration can
be printed as well as run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from psycopg import sql
from sqlalchemy import ColumnElement, FromClause, func, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

__all__ = ["AlterReranker", "CreateReranker", "DropModel", "DropReranker", "RegisterModel"]


class _Call(ExecutableDDLElement):
    """SELECT pgrerank.FUNCTION(argument => literal, …)."""

    def __init__(self, function: str, arguments: Mapping[str, Any]) -> None:
        self.function = function
        self.arguments = {key: value for key, value in arguments.items() if value is not None}


class CreateReranker(_Call):
    """pgrerank.create_reranker over a table; `settings` are its further arguments by name."""

    def __init__(self, name: str, source: FromClause, settings: Mapping[str, Any]) -> None:
        super().__init__("create_reranker", {"reranker": name, "source": source, **settings})


class AlterReranker(_Call):
    """pgrerank.alter_reranker; what `settings` leaves out stays as it is."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__("alter_reranker", {"reranker": name, **settings})


class DropReranker(_Call):
    """pgrerank.drop_reranker; with `if_exists`, one that is not there is no error."""

    def __init__(self, name: str, *, if_exists: bool = False) -> None:
        super().__init__("drop_reranker", {"reranker": name})
        self.if_exists = if_exists


class RegisterModel(_Call):
    """pgrerank.register_model; the arguments are its own."""

    def __init__(self, name: str, kind: str, source: str, **arguments: Any) -> None:
        super().__init__(
            "register_model", {"name": name, "kind": kind, "source": source, **arguments}
        )


class DropModel(_Call):
    """pgrerank.drop_model."""

    def __init__(self, name: str) -> None:
        super().__init__("drop_model", {"name": name})


@compiles(_Call, "postgresql")
def _render(element: _Call, compiler: DDLCompiler, **_: Any) -> str:
    def rendered(expression: ColumnElement[Any]) -> str:
        return str(compiler.sql_compiler.process(expression, literal_binds=True))

    call = getattr(func.pgrerank, element.function)(
        *(
            literal_column(name).op("=>")(_literal(value, compiler))
            for name, value in element.arguments.items()
        )
    )
    statement = f"SELECT {rendered(call)}"
    if isinstance(element, DropReranker) and element.if_exists:
        name = rendered(_literal(element.arguments["reranker"], compiler))
        statement += f" FROM pgrerank.rerankers WHERE name = {name}"
    return statement


def _literal(value: Any, compiler: DDLCompiler) -> ColumnElement[Any]:
    """Quote as psycopg does: SQLAlchemy 2.0 doubles backslashes where it has no connection."""
    if isinstance(value, FromClause):
        value = compiler.preparer.format_table(value)
    elif isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    return literal_column(sql.Literal(value).as_string().lstrip())
