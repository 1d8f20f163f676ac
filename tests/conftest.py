"""What tests share, on top of the plugin's fixtures: pgrerank.testing."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.sources import Source
from tests.helpers.tiny_models import make as make_tiny_models
from tests.helpers.wire_served import Served, serving

Connection = psycopg.Connection[tuple]
_numbers = itertools.count(1)

# Machines may be slow, and many properties are of one database.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("any machine")

_LONG = (
    *("docs", "training", "benchmarks", "optimise", "cli", "demo", "tenants", "upgrade", "worker"),
    *("smaller_tokens", "http", "early_exit", "embedded", "native_install", "evaluate", "alembic"),
    *("sqlalchemy", "mteb", "search", "lexical", "compose", "package", "worker_role"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The modules that take longest first: else one process ends with them, the other idle."""
    places = {f"test_{name}": place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def server_dsn(pgrerank_server_dsn: str) -> str:
    """A superuser's connection string to a running server."""
    return pgrerank_server_dsn


@pytest.fixture(scope="session")
def pgrerank_make_database(
    make_role: Callable[..., str], pgrerank_make_database: Callable[..., str]
) -> Callable[..., str]:
    """The plugin's; its databases are dropped before the roles."""
    return pgrerank_make_database


@pytest.fixture(scope="session")
def make_database(pgrerank_make_database: Callable[..., str]) -> Callable[..., str]:
    """Creates empty databases; returns their connection strings."""
    return pgrerank_make_database


@pytest.fixture
def empty_dsn(make_database: Callable[..., str]) -> str:
    """A fresh database without pgrerank."""
    return make_database()


@pytest.fixture
def dsn(pgrerank_dsn: str) -> str:
    """A fresh database with pgrerank installed."""
    return pgrerank_dsn


@pytest.fixture
def db(pgrerank_connection: Connection) -> Connection:
    """An autocommit connection to it, as its superuser."""
    return pgrerank_connection


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
def open_folder() -> Iterator[Path]:
    """A folder that root's servers, which run as another user, can get to.

    tmp_path is closed to others, and so again whenever another pytest starts.
    """
    with tempfile.TemporaryDirectory(prefix="pgrerank-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


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
