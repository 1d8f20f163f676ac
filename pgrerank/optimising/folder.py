"""The folder of an optimised model, which is there whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgrerank.errors import SettingsError
from pgrerank.guard import Guard


def default_folder(name: str) -> Path:
    """A folder here that is named after a model."""
    return Path(re.sub(r"[^\w.-]+", "-", name).strip(".-") or "model")


def check_free(folder: Path) -> None:
    """Raises SettingsError where something is there already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(
            f"{str(folder)!r} is there already: give another folder by --output, or delete it"
        )


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write in; `finish` makes it that, else it is taken away again.

    A guard does so where this process is killed.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    guard = Guard(os.getpid(), [part])
    try:
        yield part
    finally:
        take_away(part)
        guard.dismiss()


def finish(part: Path, folder: Path) -> None:
    """Give the written folder its name."""
    check_free(folder)
    part.rename(folder)


def take_away(folder: Path) -> None:
    """Delete a folder with all that is in it, as far as it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
