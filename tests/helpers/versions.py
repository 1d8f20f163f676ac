"""Databases of another version, and what two databases differ in."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import psycopg

from pgrerank.embedded.binaries import account, find
from pgrerank.install.scripts import SCRIPTS, Scripts, freeze

NEXT = "9.0.0"
"""A release that is made up of this version, as the next one would be."""

_SETTING = """,
        ('mood', 'int', '7', 'rerankers', true, '0', true, NULL,
            'x IS NULL OR x BETWEEN 1 AND 9', '1 to 9',
            'A setting that this version does not have')
    ) s (setting, type, preset,"""
_STAGE = """
        ('backwards', false, 'candidates', NULL, false, false, true, false, 'has_text',
            'backwards wants a query text'),
        ('cross_encoder',"""
_SCORE = """
CREATE OR REPLACE FUNCTION _score_backwards(
    _reranker rerankers, _generation generations, _call search_call, _keys text[],
    _deadline timestamptz, OUT keys text[], OUT scores real[], OUT passages int[])
LANGUAGE sql
SET search_path FROM CURRENT
AS $$
    SELECT _keys, array_agg(k.place::real ORDER BY k.place), NULL::int[]
    FROM unnest(_keys) WITH ORDINALITY k (key, place)
$$;
"""
_LAST = "created_at timestamptz NOT NULL DEFAULT now()"
_ONCE = f"""
SELECT _expect_version('{SCRIPTS.version}');
UPDATE rerankers SET maxsim_top = maxsim_top + 1;
ALTER TABLE feedback ADD COLUMN note text;
"""


def next_release(folder: Path) -> Scripts:
    """The next release's files: a setting, a stage, a column more, and what is done once."""
    shutil.copytree(str(SCRIPTS.folder), folder)
    freeze(SCRIPTS, folder / "releases")
    _edit(folder / "10_schema.sql", f"'{SCRIPTS.version}'", f"'{NEXT}'")
    _edit(folder / "25_stages.sql", "\n        ('cross_encoder',", _STAGE)
    _edit(folder / "30_rerankers.sql", "\n    ) s (setting, type, preset,", _SETTING)
    _edit(
        folder / "98_judging.sql",
        "DEFAULT now()\n);\nCREATE INDEX",
        "DEFAULT now(),\n    note text\n);\nCREATE INDEX",
    )
    (folder / "93_backwards.sql").write_text(_SCORE, "utf-8")
    (folder / "upgrades" / f"{SCRIPTS.version}--{NEXT}.sql").write_text(_ONCE, "utf-8")
    return Scripts(folder, NEXT)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(text.replace(old, new), "utf-8")


def dump(dsn: str, *options: str) -> str:
    """pg_dump's output, without what differs from run to run."""
    done = subprocess.run(
        [_pg_dump(dsn), *options, dsn], capture_output=True, text=True, check=True
    )
    return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)


def _pg_dump(dsn: str) -> Path:
    """The server's own, for it knows what not to dump; or the embedded server's."""
    with psycopg.connect(dsn) as connection:
        major = connection.info.server_version // 10000
    own = Path(f"/usr/lib/postgresql/{major}/bin/pg_dump")
    return own if own.exists() else find(account()) / "pg_dump"


def restore(dumped: str, dsn: str, *, stop: bool = True) -> str:
    """What `psql` does with it, stopping at the first error or at none; what it complains of."""
    done = subprocess.run(
        [find(account()) / "psql", "-X", "-q", "-v", f"ON_ERROR_STOP={stop:d}", dsn],
        input=dumped,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
