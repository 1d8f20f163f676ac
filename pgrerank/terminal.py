"""Prints what commands say: tables for people, JSON for scripts, errors with their remedy."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pgrerank.errors import PgrerankError

__all__ = ["console", "document_progress", "note", "print_rows", "report_errors", "work_progress"]

_WIDE = 500
"""Columns where there is no terminal: a file or pipe wraps nothing."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)  # commands stay whole


def note(text: str) -> None:
    """Print a note on standard error; results go to standard output."""
    _errors.print(escape(text))


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool) -> None:
    """Print rows as one JSON array of objects, or as a table."""
    if as_json:
        objects = [dict(zip(columns, row, strict=True)) for row in rows]
        sys.stdout.write(json.dumps(objects, default=str, ensure_ascii=False) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[place], int | float | None) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))
    console.print(table)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else ""
        case float():
            return f"{value:.4f}"
        case timedelta():
            return str(timedelta(seconds=round(value.total_seconds())))
    return str(value)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """End the command with a message, not a traceback, for errors that are the user's to mend."""
    try:
        yield
    except psycopg.Error as error:
        message = error.diag.message_primary or str(error).strip()
        _errors.print(f"[bold red]error:[/] {escape(message)}")
        if error.diag.message_hint:
            _errors.print(f"[bold]hint:[/] {escape(error.diag.message_hint)}")
        raise typer.Exit(1) from error
    except (PgrerankError, OSError) as error:
        _errors.print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(1) from error
    except UnicodeEncodeError as error:
        given = ascii(error.object[:60])
        _errors.print(f"[bold red]error:[/] {escape(given)} is not UTF-8, which a text must be")
        raise typer.Exit(1) from error


class _Rate(ProgressColumn):
    def __init__(self, things: str) -> None:
        super().__init__()
        self._things = things

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} {self._things}/s")


def document_progress(title: str) -> contextlib.AbstractContextManager[Any]:
    """`work_progress` of documents."""
    return work_progress(title, "documents")


@contextlib.contextmanager
def work_progress(title: str, things: str) -> Iterator[Any]:
    """A progress bar on a terminal, silence elsewhere; yields a function (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(things),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, disable=not _errors.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
