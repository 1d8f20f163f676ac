"""A real Postgres for every test: the one of PGRERANK_TEST_DSN, or an embedded one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgrerank import schema
from tests.sources import Source
from tests.tiny_models import make as make_tiny_models
from tests.wire_served import Served, serving

Connection = psycopg.Connection[tuple]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """A superuser's connection string to a running server."""
    if dsn := os.environ.get("PGRERANK_TEST_DSN"):
        yield dsn
    else:
        from pgrerank import embedded

        with embedded.start() as server:
            yield server.dsn


@pytest.fixture(scope="session")
def make_database(server_dsn: str, make_role: Callable[..., str]) -> Iterator[Callable[..., str]]:
    """Creates databases; returns their connection strings. Dropped before the roles."""
    made: list[str] = []

    def make(template: str = "template0") -> str:
        name = f"pgrerank_test_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(server_dsn, autocommit=True) as connection:
            connection.execute(
                psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    psycopg.sql.Identifier(name), psycopg.sql.Identifier(template)
                )
            )
        made.append(make_conninfo(server_dsn, dbname=name))
        return made[-1]

    yield make
    for dsn in made:
        _drop(server_dsn, dsn)


def _drop(server_dsn: str, dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(
            psycopg.sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                psycopg.sql.Identifier(str(name))
            )
        )


@pytest.fixture(scope="session")
def template(make_database: Callable[..., str]) -> str:
    """Name of a database with pgrerank installed, to be cloned."""
    dsn = make_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.install(connection)
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def empty_dsn(server_dsn: str, make_database: Callable[..., str]) -> Iterator[str]:
    """A fresh database without pgrerank."""
    dsn = make_database()
    yield dsn
    _drop(server_dsn, dsn)


@pytest.fixture
def dsn(server_dsn: str, make_database: Callable[..., str], template: str) -> Iterator[str]:
    """A fresh database with pgrerank installed."""
    dsn = make_database(template)
    yield dsn
    _drop(server_dsn, dsn)


@pytest.fixture
def db(dsn: str) -> Iterator[Connection]:
    """An autocommit connection to it, as its superuser."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def make_role(server_dsn: str) -> Iterator[Callable[..., str]]:
    """Creates login roles; returns their names, which are also their passwords. Dropped last."""
    roles: list[str] = []

    def make(attributes: str = "") -> str:
        name = f"pgrerank_role_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(server_dsn, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}' {attributes}")
        roles.append(name)
        return name

    yield make
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        for role in roles:
            connection.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def source_of() -> type[Source]:
    """Makes the table `documents` over a connection."""
    return Source


@pytest.fixture
def source(db: Connection) -> Source:
    """The table `documents` in a fresh database."""
    return Source(db)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of small random models: embedding, tokens, reranker."""
    return make_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def locked_server() -> Iterator[Served]:
    """A wire server that wants a password."""
    with serving() as served:
        yield served


@pytest.fixture
def locked(locked_server: Served) -> Served:
    """The same, having seen nothing yet."""
    locked_server.reset()
    return locked_server


@pytest.fixture(scope="module")
def trusting_server() -> Iterator[Served]:
    """A wire server that wants none."""
    with serving(user=None, password=None, max_message=40_000_000) as served:
        yield served


@pytest.fixture
def trusting(trusting_server: Served) -> Served:
    """The same, having seen nothing yet."""
    trusting_server.reset()
    return trusting_server
