"""Prints what a search found: for people the columns that matter, as wide as the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from rich.cells import cell_len, set_cell_size

from pgrerank.terminal import console, note, print_rows

__all__ = ["print_found"]

_COLUMNS = ("rank", "score", "relevance", "stage", "passage")
_NARROWEST = 20
_NUMBER = 8
"""Columns that a number takes with its place between two others."""


def print_found(cursor: psycopg.Cursor[Any], *, as_json: bool) -> None:
    """Print a search's rows: all columns as JSON, or a table with passages cut to fit."""
    names = [column.name for column in cursor.description or ()]
    rows = cursor.fetchall()
    if as_json:
        print_rows(names, rows, as_json=True)
        return
    found = [dict(zip(names, row, strict=True)) for row in rows]
    shown = [name for name in _COLUMNS if any(one[name] is not None for one in found)]
    columns = [names[0], *shown]
    room = console.width - _taken(found, columns[:-1])
    for one in found:
        one["passage"] = _cut(one["passage"], max(room, _NARROWEST))
    print_rows(columns, [[one[name] for name in columns] for one in found], as_json=False)
    for reason in sorted({one["reason"] for one in found if one["degraded"]}):
        note(f"degraded: {reason}")


def _taken(found: Sequence[dict[str, Any]], columns: Sequence[str]) -> int:
    """The width of columns, with the space after each."""
    cells = {
        name: [
            len(name),
            *(
                _NUMBER if isinstance(one[name], float) else cell_len(str(one[name]))
                for one in found
            ),
        ]
        for name in columns
    }
    return sum(max(lengths) + 2 for lengths in cells.values())


def _cut(text: str | None, width: int) -> str:
    line = " ".join((text or "").split())
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"
