"""The commands, as users and scripts call them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from rich.cells import cell_len
from typer.main import get_command
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.install import extension, schema

COMMANDS = get_command(app).commands
GROUPS = ("extension", "models", "native", "qrels")
NAMES = sorted(
    [(name,) for name in COMMANDS if name not in GROUPS]
    + [(group, name) for group in GROUPS for name in COMMANDS[group].commands]
)


def run(*arguments: str, answer: str | None = None):
    return CliRunner().invoke(app, list(arguments), input=answer)


def ok(*arguments: str, **options) -> str:
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("name", NAMES, ids=" ".join)
def test_every_command_has_help_with_an_example(name):
    assert "Example:" in ok(*name, "--help")


def test_install_and_uninstall(empty_dsn):
    for _ in range(2):
        ok("install", "--dsn", empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        assert schema.installed_version(connection)
    assert run("uninstall", "--dsn", empty_dsn, answer="n\n").exit_code == 1
    with psycopg.connect(empty_dsn) as connection:
        assert schema.installed_version(connection)
    ok("uninstall", "--dsn", empty_dsn, "--yes")
    with psycopg.connect(empty_dsn) as connection:
        assert schema.installed_version(connection) is None


def test_the_extension_is_put_where_pg_config_says(tmp_path):
    (tmp_path / "extension").mkdir()
    pg_config = tmp_path / "pg_config"
    pg_config.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    pg_config.chmod(0o755)
    assert "CREATE EXTENSION pgrerank CASCADE" in said("extension", "install", pg_config)
    ok("extension", "write", str(tmp_path / "other"))
    for folder in ("extension", "other"):
        found = {path.name: path.read_text("utf-8") for path in (tmp_path / folder).iterdir()}
        assert found == extension.extension_files()
    assert "can't write the extension" in refused("extension", "write", "/proc/nowhere")


def said(*command: object) -> str:
    *words, pg_config = map(str, command)
    result = run(*words, "--pg-config", pg_config)
    assert result.exit_code == 0, result.output
    return " ".join(result.stderr.split())


def test_the_life_of_a_reranker(dsn, db, source, tiny_models):
    add = ("models", "add", "--dsn", dsn)
    ok(*add, "embedding", "--kind", "embedding", "--source", tiny_models["embedding"])
    ok(
        *(*add, "tokens", "--kind", "late_interaction", "--loader", "sentence_transformer"),
        *("--source", tiny_models["tokens"]),
    )
    ok(
        *(*add, "reranker", "--kind", "cross_encoder", "--source", tiny_models["reranker"]),
        *("--options", '{"max_tokens": 48}'),
    )
    [row] = db.execute("SELECT options, max_tokens FROM pgrerank.models WHERE name = 'reranker'")
    assert row == ({"max_tokens": 48}, 48)
    models = json.loads(ok("models", "list", "--json", "--dsn", dsn))
    assert [(model["name"], model["dims"]) for model in models] == [
        ("embedding", 32),
        ("reranker", None),
        ("tokens", 32),
    ]
    ok(
        *("create", "documents", "--dsn", dsn, "--source", "documents", "--text", "title, body"),
        *("--embedding-model", "embedding", "--late-interaction-model", "tokens"),
        *("--text-search-config", "english"),
    )
    assert json.loads(ok("status", "--json", "--dsn", dsn))[0]["pending"] == 3
    result = run("backfill", "documents", "--dsn", dsn)
    assert result.exit_code == 0
    assert "3 documents were pending" in result.stderr
    assert "━" not in result.stderr
    [status] = json.loads(ok("status", "--json", "--dsn", dsn))
    assert (status["encoded"], status["pending"]) == (3, 0)
    rows = json.loads(ok("search", "documents", "flour bread", "--json", "--dsn", dsn))
    assert (rows[0]["id"], rows[0]["degraded"], rows[0]["stage"]) == (3, True, "lexical")
    found = run("search", "documents", "cat", "--filter", '{"title": "Cats"}', "--dsn", dsn)
    assert re.search(r"^ *2 +1 +[\d.]+ +lexical +Cats A cat sleeps", found.stdout, re.MULTILINE)
    assert found.stderr == "degraded: no worker is known\n"
    assert "no worker is known" in refused("search", "documents", "cat", "--strict", "--dsn", dsn)
    ok("drop", "documents", "--dsn", dsn)
    ok("models", "drop", "tokens", "--dsn", dsn)
    assert db.execute("SELECT count(*) FROM pgrerank.rerankers").fetchone() == (0,)


def test_a_reranker_is_changed(dsn, db, source):
    source.create()
    source.encode_by_hand()
    alter = ("alter", "documents", "--dsn", dsn)
    said = run(*alter, "--candidates", "200", "--cross-encoder-model", "")
    assert said.exit_code == 0
    assert said.stderr.split() == ["reranker", "documents", "is", "changed"]
    said = run(*alter, "--text", "body", "--token-dims", "16", "--maxsim-bit-top", "20")
    assert "fewer than 256 documents" in said.stderr
    assert "until generation 2 is encoded: 3 documents" in " ".join(said.stderr.split())
    [row] = db.execute(
        "SELECT candidates, maxsim_bit_top, cross_encoder_model, token_dims, text_expression"
        " FROM pgrerank.rerankers JOIN pgrerank.generations ON reranker = name AND number = 2"
    )
    assert row[:4] == (200, 20, None, 16)
    assert "title" not in row[4]
    assert "maxsim_top is '0', expected 1 to 1000" in refused(*alter, "--maxsim-top", "0")
    assert run("models", "add", "m", "--options", "[1]", "--dsn", dsn).exit_code == 2


def test_errors_name_their_object_and_the_remedy(dsn, source, tmp_path):
    source.models()
    create = ("create", "documents", "--dsn", dsn, "--source", "documents")
    models = ("--embedding-model", "embedding")
    assert 'no column "x"' in refused(*create, "--text", "x", *models)
    assert 'model "x" is not registered hint: Registered' in refused(
        *create, "--text", "body", "--embedding-model", "x"
    )
    for command in ("drop", "backfill", "alter"):
        assert 'reranker "x" does not exist' in refused(command, "x", "--dsn", dsn)
    assert 'reranker "x" does not exist' in refused("search", "x", "q", "--dsn", dsn)
    (tmp_path / "empty").mkdir()
    error = refused(
        *("models", "add", "m", "--kind", "embedding", "--source", str(tmp_path / "empty")),
        *("--dsn", dsn),
    )
    assert "model m" in error
    assert "connection failed" in refused("status", "--dsn", "host=127.0.0.1 port=1")
    assert "HOST:PORT expected" in refused("worker", "--dsn", dsn, "--listen", "x", "--register")


def test_libpq_variables_serve_in_place_of_a_dsn(dsn, monkeypatch):
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    names |= {"password": "PGPASSWORD"}
    for key, value in conninfo_to_dict(dsn).items():
        monkeypatch.setenv(names[key], str(value))
    assert json.loads(ok("status", "--json")) == []


def on_terminal(stream: str, width: int, *arguments: str) -> str:
    """What a terminal of that width sees of a command's standard output or error."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pgrerank", *arguments],
        env=os.environ | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(width)},
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: follower},
    ) as process:
        os.close(follower)
        seen = b""
        while chunk := _read(leader):
            seen += chunk
        assert process.wait() == 0
    os.close(leader)
    return seen.decode()


def test_a_terminal_sees_a_progress_bar(dsn, source, tiny_models):
    source.models(**tiny_models)
    source.create()
    seen = on_terminal("stderr", 120, "backfill", "documents", "--dsn", dsn)
    assert "encoding documents" in seen
    assert "3/3" in seen


def test_what_a_search_found_fits_the_terminal(dsn, db, source):
    db.execute("UPDATE documents SET body = repeat('the 连接池 of cats\n[bold] ', 30) WHERE id = 2")
    source.create(embedding_model=None, late_interaction_model=None, cross_encoder_model=None)
    while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass
    asked = ("search", "documents", "cats pool", "--dsn", dsn)
    for width in (60, 120):
        seen = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal("stdout", width, *asked))
        head, *rows = seen.splitlines()
        assert head.split() == ["id", "rank", "score", "stage", "passage"]
        assert [row.split()[:2] for row in rows] == [["2", "1"], ["1", "2"]]
        assert all(cell_len(row) <= width for row in rows)
        assert rows[0].rstrip().endswith("…")
    [row, _] = json.loads(ok(*asked, "--json"))
    assert len(row["passage"]) > 500
    assert row["lexical_rank"] == 1


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


@contextlib.contextmanager
def dev(stderr: Any = subprocess.DEVNULL) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`pgrerank dev` and its connection string; not left running when a test fails."""
    with subprocess.Popen(
        [sys.executable, "-m", "pgrerank", "dev"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_dev_serves_until_it_is_told_to_stop_and_leaves_nothing(number):
    with dev() as (process, dsn):
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert schema.installed_version(connection)
            beating = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'heartbeat'"
            ).fetchone()
            assert beating == (1,)
        process.send_signal(number)
        assert process.wait(30) == (-number if number == signal.SIGKILL else 0)
    _wait_until(lambda: _commands_with(conninfo_to_dict(dsn)["port"]) == [])


def test_dev_follows_a_dead_worker_by_another_and_ends_with_a_dead_postgres(tmp_path):
    said = tmp_path / "said"
    with said.open("w") as stream, dev(stderr=stream) as (process, dsn):
        with psycopg.connect(dsn, autocommit=True) as connection:
            [folder] = connection.execute("SHOW data_directory").fetchone()
        port = conninfo_to_dict(dsn)["port"]
        [worker] = subprocess.run(
            ["pgrep", "-f", f"pgrerank worker .*port={port}"], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(worker), signal.SIGKILL)
        _wait_until(lambda: "another worker is ready" in said.read_text())
        os.kill(int((Path(folder) / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        assert process.wait(30) == 1
    told = said.read_text()
    assert "the worker died (killed by SIGKILL); the last of its log:\n" in told
    assert "  ready, listening on 127.0.0.1:" in told
    assert "error: Postgres died; the last of its log:\n" in told
    assert "ready to accept connections" in told
    assert not Path(folder).exists()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _commands_with(port: str) -> list[str]:
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if f"port={port}" in line]


def test_no_secret_is_on_a_command_line():
    with dev() as (_, dsn):
        password = conninfo_to_dict(dsn)["password"]
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        assert password not in listing.stdout
        assert "pgrerank worker" in listing.stdout


def test_a_worker_without_a_database_says_so(empty_dsn):
    done = subprocess.run(
        [sys.executable, "-m", "pgrerank", "worker", "--dsn", empty_dsn, "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PGRERANK_WORKER_PASSWORD": "x"},
    )
    assert done.returncode == 1
    assert "has no pgrerank: run pgrerank install" in done.stderr
    assert "Traceback" not in done.stderr


SPEAKING = [
    *(("status",), ("workers",), ("search", "documents", "x"), ("explain", "documents", "x")),
    *(("evaluate", "documents", "--qrels", "x"), ("replay", "documents"), ("backfill", "d")),
    *(("drop", "documents"), ("qrels", "list"), ("models", "list"), ("native", "status")),
    *(("reconcile", "documents"), ("feedback", "documents", "--output", "x"), ("mcp",)),
]


def test_commands_say_plainly_that_the_schema_is_of_another_version(db, dsn, empty_dsn):
    db.execute(
        "CREATE OR REPLACE FUNCTION pgrerank.schema_version() RETURNS text LANGUAGE sql"
        " AS $$ SELECT '9.0.0' $$"
    )
    for command in SPEAKING:
        other = run(*command, "--dsn", dsn)
        assert other.exit_code == 1, command
        assert f"has pgrerank 9.0.0, this package is {schema.VERSION}: run pip" in other.stderr
        without = run(*command, "--dsn", empty_dsn)
        assert without.exit_code == 1, command
        assert "has no pgrerank: run pgrerank install" in without.stderr


@pytest.mark.parametrize("top_k", ["0", "-1", "100001"])
def test_top_k_has_bounds(top_k):
    for command in ("search", "explain"):
        result = run(command, "documents", "cat", "--top-k", top_k)
        assert result.exit_code == 2
        assert "or equal to 1" in result.output  # or 100000


def test_a_query_that_is_not_utf_8_is_told_so(dsn, db, source):
    source.create()
    command = [sys.executable, "-m", "pgrerank", "search", "documents", b"\xff\xfe", "--dsn", dsn]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr
