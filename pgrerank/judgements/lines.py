"""Reads files line by line; every bad line is reported, and then nothing is read."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pgrerank.errors import FileError

_SHOWN = 20
Parsed = TypeVar("Parsed")


def read_lines(path: Path, parse: Callable[[int, str], Parsed]) -> list[Parsed]:
    """Parse each line that isn't blank; `parse` is given its number (from 1) and its text.

    Raises FileError with all that `parse` refused by a ValueError, each by the line's number (the
    first 20 of them), and OSError. A file is UTF-8; a line ends in LF or CRLF, whatever it holds.
    """
    parsed, faults = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                parsed.append(parse(number, _decoded(number, line)))
            except ValueError as fault:
                faults.append(f"line {number}, {fault}")
    refuse(path, faults)
    return parsed


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Raise FileError with the faults of a file, if it has any."""
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:_SHOWN])
        more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise FileError(f"{path} can't be read, mend it first:{shown}{more}")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines, UTF-8; a file that is there is replaced once the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".part")
    with fresh.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)
    fresh.replace(path)


def json_object(line: str) -> dict[str, Any]:
    """The JSON object that a line is; raises ValueError with the column for anything else."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: not JSON: {error.msg}") from error
    if not isinstance(row, dict):
        raise ValueError(f"column 1: expected a JSON object, not {type(row).__name__}")  # noqa: TRY004
    return row


def only(row: Mapping[str, Any], fields: Sequence[str], *, besides: Sequence[str] = ()) -> None:
    """Raise ValueError for a field that is neither one of `fields` nor one `besides` them."""
    unknown = sorted(set(row) - {*fields, *besides})
    if unknown:
        raise ValueError(f"field {unknown[0]!r} is unknown; there are {', '.join(fields)}")


def text(row: Mapping[str, Any], name: str) -> str:
    """A field that holds a text with something in it; raises ValueError for anything else."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r}: expected a text, not {brief(value)}")
    return value


def whole(value: str, column: int) -> int:
    """The whole number in a column (from 1); raises ValueError for anything else."""
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"column {column}: expected a whole number, not {value!r}") from None


def brief(value: Any) -> str:
    """Show a value in a message: JSON, cut after 40 characters."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 40 else shown[:40] + "…"


def normal(value: str) -> str:
    """Normalise a text: fold case and white space, which make no difference."""
    return " ".join(value.casefold().split())


def _decoded(number: int, line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"column {error.start + 1}: not UTF-8") from error
    if number == 1:
        text = text.removeprefix(codecs.BOM_UTF8.decode())
    return text.removesuffix("\n").removesuffix("\r")
