"""Pytest fixtures. Override `pgrerank_template` to have your tables in every test's database."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg


@pytest.fixture(scope="session")
def pgrerank_server_dsn() -> Iterator[str]:
    """Connection string of a server: PGRERANK_TEST_DSN's, one in Docker, or the embedded one."""
    from pgrerank.testing.servers import server

    with server() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def pgrerank_make_database(pgrerank_server_dsn: str) -> Iterator[Callable[..., str]]:
    """Creates databases, empty or as copies of a template; returns their connection strings.

    They are dropped at the end. Names are unique, so that test processes can share a server.
    """
    import psycopg
    from psycopg import sql
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    made: list[str] = []

    def make(template: str = "") -> str:
        """`template` is the connection string of a database that nobody is connected to."""
        name = f"pgrerank_test_{uuid.uuid4().hex[:16]}"
        original = str(conninfo_to_dict(template)["dbname"]) if template else "template0"
        with psycopg.connect(pgrerank_server_dsn, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(original)
                )
            )
        made.append(make_conninfo(pgrerank_server_dsn, dbname=name))
        return made[-1]

    yield make
    for dsn in made:
        _drop(pgrerank_server_dsn, dsn)


@pytest.fixture(scope="session")
def pgrerank_template(pgrerank_make_database: Callable[..., str]) -> str:
    """Connection string of the database that is copied for each test: pgrerank and nothing else.

    Override it to add your tables, models and rerankers; leave no connection open.
    """
    import psycopg

    from pgrerank.install import schema

    dsn = pgrerank_make_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.install(connection)
    return dsn


@pytest.fixture
def pgrerank_dsn(
    pgrerank_server_dsn: str, pgrerank_make_database: Callable[..., str], pgrerank_template: str
) -> Iterator[str]:
    """Connection string of a fresh copy of the template; dropped after the test."""
    dsn = pgrerank_make_database(pgrerank_template)
    yield dsn
    _drop(pgrerank_server_dsn, dsn)


@pytest.fixture
def pgrerank_connection(pgrerank_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to the test's database."""
    import psycopg

    with psycopg.connect(pgrerank_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def pgrerank_worker(
    pgrerank_dsn: str, tmp_path: Path
) -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """Starts a worker for the test's database, registered there: `with pgrerank_worker(): …`.

    The database must reach this process: a container's does not.
    """
    from pgrerank.worker.child import worker_process

    def start(*options: str) -> contextlib.AbstractContextManager[Any]:
        return worker_process(pgrerank_dsn, tmp_path / "pgrerank-worker.log", *options)

    return start


def _drop(server_dsn: str, dsn: str) -> None:
    import psycopg
    from psycopg import sql
    from psycopg.conninfo import conninfo_to_dict

    name = str(conninfo_to_dict(dsn)["dbname"])
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )
