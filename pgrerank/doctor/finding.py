"""What a check finds, and how a check asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, LiteralString

import psycopg
from psycopg.rows import namedtuple_row

Connection = psycopg.Connection[Any]


class Severity(IntEnum):
    """How bad a finding is; the worst one's number is the command's exit code."""

    NOTE = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """What is wrong with `about`, and the SQL or command that mends it, if there is one."""

    severity: Severity
    check: str
    about: str
    message: str
    remedy: str | None = None


Found = Iterator[tuple[Severity, str, str, str | None]]
"""What a check yields: a finding's severity, what it is about, message and remedy."""

Check = Callable[[Connection], Found]
"""Looks at one concern of a database."""


def ask(connection: Connection, query: LiteralString, *values: Any) -> list[Any]:
    """The rows of a query, with their columns as attributes."""
    return connection.cursor(row_factory=namedtuple_row).execute(query, values or None).fetchall()


def size(count: float) -> str:
    """Bytes in words, such as `1.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1024:
            return (
                f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
            )
        count /= 1024
    return f"{count:.1f} TB"
