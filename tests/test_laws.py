"""Laws of the house that no linter knows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pgrerank.stages import DEFAULT_BLEND, STAGES, columns

ROOT = Path(__file__).parents[1]
SQL = sorted((ROOT / "sql").glob("*.sql"))
NATIVE = sorted(p for p in (ROOT / "native").rglob("*") if p.suffix in (".c", ".h", ".sql"))


@pytest.mark.parametrize("path", [*SQL, *NATIVE], ids=lambda path: path.name)
def test_no_line_is_wider_than_120_columns(path):
    lines = path.read_text("utf-8").expandtabs(4).splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


@pytest.mark.parametrize("path", SQL, ids=lambda path: path.name)
def test_parameters_never_collide_with_columns(path):
    """Those of internal functions begin with _, so that no pragma has to say which is meant."""
    text = path.read_text("utf-8")
    assert "#variable_conflict" not in text
    for name, arguments in re.findall(r"FUNCTION (_\w+)\(([^)]*)\)", text):
        for argument in filter(None, (part.strip() for part in arguments.split(","))):
            word = argument.split()[0]
            assert word.startswith("_") or word in ("OUT", "INOUT") or "%" in word, (name, argument)


@pytest.mark.parametrize("path", SQL, ids=lambda path: path.name)
def test_dynamic_statements_have_at_most_four_marks(path):
    """With more of them a reader must run format in his head."""
    text = path.read_text("utf-8").replace("%%", "")
    for statement in re.findall(r"EXECUTE format\(\$sql\$(.*?)\$sql\$", text, re.DOTALL):
        positions = set(re.findall(r"%(\d)\$", statement))
        assert (len(positions) or len(re.findall(r"%[sIL]", statement))) <= 4, statement


def test_python_calls_no_internal_sql():
    private = re.compile(r"pgrerank\._[a-z]")
    files = (ROOT / "pgrerank").rglob("*.py")
    assert [path for path in files if private.search(path.read_text("utf-8"))] == []


def test_python_knows_the_stages_that_the_database_has(db):
    stages = "SELECT stage, is_blended FROM pgrerank._stages() ORDER BY place"
    declared = db.execute(stages).fetchall()
    assert declared == [(stage.name, stage.is_blended) for stage in STAGES.values()]
    [(blend,)] = db.execute(
        "SELECT s.preset FROM pgrerank._settings() s WHERE s.setting = 'blend'"
    ).fetchall()
    assert json.loads(blend.strip("'")) == DEFAULT_BLEND
    [(names,)] = db.execute("SELECT (pgrerank._attributes('pgrerank.ranked')).names").fetchall()
    assert names[-len(columns()) :] == list(columns())
