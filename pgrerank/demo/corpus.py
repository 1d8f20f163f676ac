"""The demo's corpus: the documentation of the running Python's standard library."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pgrerank.errors import PgrerankError

_READER = Path(__file__).with_name("reader.py")
_SECONDS = 120


@dataclass(frozen=True)
class Entry:
    """A documented object of the standard library.

    `id` is its qualified name, without "builtins."; `module` the public module that has it;
    `kind` module, class, function, method or property; `title` its id with its signature;
    `text` its docstring without indentation and without NUL.
    """

    id: str
    module: str
    kind: str
    title: str
    text: str


def read_corpus() -> list[Entry]:
    """All entries, ordered by id; the same at every call on one Python and platform.

    Importing three hundred modules has side effects (threads, warnings, patched globals), so
    reader.py does it in an isolated process: no site-packages, PYTHON* variables or current folder.
    Raises PgrerankError if that process fails.
    """
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, on a file of ours
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-W", "ignore", str(_READER)],
            capture_output=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or error
        raise PgrerankError(f"{sys.executable} can't read its documentation: {told}") from error
    entries = (Entry(**json.loads(line)) for line in done.stdout.splitlines())
    return sorted(entries, key=lambda entry: entry.id)
