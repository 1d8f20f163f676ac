"""Studio over a database of encoded documents, the same for all tests of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.helpers.studio import encoded, studio


@pytest.fixture(scope="package")
def encoded_dsn(
    make_database: Any, pgrerank_template: str, tiny_models: Any, tmp_path_factory: Any
) -> Iterator[str]:
    """Documents, encoded, and a worker that answers."""
    folder = tmp_path_factory.mktemp("worker")
    with encoded(make_database(pgrerank_template), tiny_models, folder) as dsn:
        yield dsn


@pytest.fixture(scope="package")
def address(encoded_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where studio serves them, with its token."""
    with studio(encoded_dsn, tmp_path_factory.mktemp("studio")) as address:
        yield address


@pytest.fixture
def connection(encoded_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to them; questions and judgements are gone afterwards."""
    with psycopg.connect(encoded_dsn, autocommit=True) as connection:
        yield connection
        connection.execute("DELETE FROM pgrerank.queries")
