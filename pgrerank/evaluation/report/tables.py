"""Writes the report's numbers as CSV, in UTF-8 with a header; a comparison has a column `run`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgrerank.evaluation.report.contrast import Contrast
from pgrerank.evaluation.result import Evaluation, tuning_of

Runs = Mapping[str, Evaluation]
"""One evaluation by the name ``""``, or two by ``A`` and ``B``."""


def measure_names(runs: Runs) -> list[str]:
    """Measures of all runs, in their order."""
    return list(dict.fromkeys(name for run in runs.values() for name in run["measures"]))


def write_stages(runs: Runs, file: Path) -> None:
    """Write a row for each order: means, milliseconds, and the gain over the order before."""
    measures = measure_names(runs)
    rows = []
    for name, run in runs.items():
        for order in run["orders"]:
            row: dict[str, object] = {"run": name, "order": order["name"], "stage": order["stage"]}
            row |= {measure: order["measures"].get(measure) for measure in measures}
            row |= {f"stage_ms_{key}": value for key, value in order["stage_ms"].items()}
            row |= {f"total_ms_{key}": value for key, value in order["total_ms"].items()}
            row |= {"against": order["against"], "gain": order["gain"], "p": order["p"]}
            rows.append(row | {"better": order["better"], "worse": order["worse"]})
    _write(rows, file)


def write_depth(runs: Runs, file: Path) -> None:
    """Write a row for each size of a setting: quality, and a call's milliseconds."""
    _write(
        [
            {"run": name, "setting": setting, **point}
            for name, run in runs.items()
            for setting, points in tuning_of(run)["depth"].items()
            for point in points
        ],
        file,
    )


def write_queries(runs: Runs, contrast: Contrast, file: Path) -> None:
    """Write a row for each query, worst first: quality after each order, and the gain."""
    rows = []
    for gain in contrast.gains:
        row: dict[str, object] = {"id": gain.found["id"], "query": gain.found["query"]}
        row["relevant"] = gain.found["relevant"]
        for (name, run), query in zip(runs.items(), (gain.found, gain.other), strict=False):
            for order in [order["name"] for order in run["orders"]]:
                row[f"{name}: {order}" if name else order] = (
                    query["quality"][order] if query else None
                )
        rows.append(row | {"change": gain.change})
    _write(rows, file)


def _write(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    columns = [name for name in (rows[0] if rows else ()) if name != "run" or rows[0]["run"]]
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as out:
        writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def run_title(runs: Runs, name: str) -> str:
    """Title a run of a comparison: its letter and its label."""
    run = runs[name]
    parts = [run["label"] or run["reranker"]]
    if len({other["label"] or other["reranker"] for other in runs.values()}) == 1:
        parts.append(f"generation {run['generation']}")
    return f"{name}: {', '.join(parts)}"
