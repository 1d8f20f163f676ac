"""Writes a report's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pgrerank.errors import extra
from pgrerank.evaluation.report import tables
from pgrerank.evaluation.report.contrast import Contrast, contrast
from pgrerank.evaluation.report.read import FILE
from pgrerank.evaluation.result import Evaluation, tuning_of

_FILES = (*("report.html", FILE, "other.json", "stages.csv", "depth.csv", "queries.csv"),)


def write_report(
    evaluation: Evaluation, folder: Path, *, other: Evaluation | None = None
) -> list[Path]:
    """Write `report.html` with its plots, tables (CSV) and numbers (JSON); returns the files.

    With `other` it is a comparison: A (the evaluation) and B (the other) side by side, and by query
    what B's last order gains over A's. The folder is made; what an earlier report left in it is
    replaced. `depth.csv` is there where depth was measured.

    Raises SettingsError where the two were measured on different qrels or first measures or share
    no query, MissingExtraError where jinja2 is not installed.
    """
    with extra("evaluation", "a report"):
        from pgrerank.evaluation.report.page import page
    gains = contrast(evaluation, other)
    runs = {"": evaluation} if other is None else {"A": evaluation, "B": other}
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        *_write_numbers(runs, gains, folder),
        _write(folder / "report.html", page(runs, gains)),
    ]
    for name in _FILES:
        if folder / name not in written:
            (folder / name).unlink(missing_ok=True)
    return written


def _write_numbers(runs: tables.Runs, gains: Contrast, folder: Path) -> Iterator[Path]:
    """Write what was measured, and tables of it."""
    for name, run in zip((FILE, "other.json"), runs.values(), strict=False):
        text = json.dumps(run, ensure_ascii=False, indent=1)
        yield _write(folder / name, text + "\n")
    tables.write_stages(runs, folder / "stages.csv")
    yield folder / "stages.csv"
    tables.write_queries(runs, gains, folder / "queries.csv")
    yield folder / "queries.csv"
    if any(tuning_of(run)["depth"] for run in runs.values()):
        tables.write_depth(runs, folder / "depth.csv")
        yield folder / "depth.csv"


def _write(file: Path, text: str) -> Path:
    # A lone half of a surrogate pair may have come by JSON; there is no UTF-8 for it.
    file.write_text(text, encoding="utf-8", errors="replace")
    return file
