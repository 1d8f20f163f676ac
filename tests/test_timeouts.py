"""Timeouts that are set for everybody, or for who searches."""

from __future__ import annotations

import signal
import time

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from tests.helpers.workers import wait_for, worker

SEARCH = "SELECT id FROM pgrerank.documents_search('bread', timeout => '20 s')"
TIMEOUTS = {
    "statement_timeout": "100ms",
    "lock_timeout": "10ms",
    "idle_in_transaction_session_timeout": "10ms",
    "idle_session_timeout": "100ms",
    "transaction_timeout": "100ms",
}


def known(db: psycopg.Connection) -> dict[str, str]:
    """Those that the server has: the last came with Postgres 17."""
    return {
        name: value
        for name, value in TIMEOUTS.items()
        if db.execute("SELECT current_setting(%s, true)", (name,)).fetchone()[0] is not None
    }


def test_timeouts_of_the_database_are_not_the_workers(dsn, db, source, tiny_models, tmp_path):
    db.execute("CREATE VIEW slow AS SELECT id, title || pg_sleep(0.1)::text AS body FROM documents")
    source.models(**tiny_models)
    db.execute(
        "SELECT pgrerank.create_reranker('documents', 'slow', '{body}',"
        " embedding_model => 'embedding', key_columns => '{id}')"
    )
    for name, value in known(db).items():
        db.execute(f"ALTER DATABASE {db.info.dbname} SET {name} = '{value}'")
    with worker(dsn, tmp_path) as process:
        wait_for(db, "pending = 0 AND failed = 0 AND encoded = 3")
        assert "timeout" not in process.log.read_text("utf-8")


@pytest.fixture
def impatient(dsn, db, source, make_role):
    """Connects as a role that may search, with one of the timeouts."""
    source.create(embedding_model=None, late_interaction_model=None)
    source.encode_by_hand()
    role = make_role()
    db.execute(f"GRANT SELECT ON documents TO {role}")

    def connect(timeout: str) -> psycopg.Connection:
        if timeout not in known(db):
            pytest.skip(f"the server has no {timeout}")
        options = f"-c {timeout}={TIMEOUTS[timeout]}"
        conninfo = make_conninfo(dsn, user=role, password=role, options=options)
        return psycopg.connect(conninfo, autocommit=True)

    return connect


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        ("statement_timeout", errors.QueryCanceled),
        ("transaction_timeout", errors.TransactionTimeout),
    ],
)
def test_a_search_that_waits_for_a_worker_ends_by_the_roles_own_timeout(
    impatient, timeout, error, dsn, db, tmp_path
):
    with worker(dsn, tmp_path, "--no-ingest") as process, impatient(timeout) as connection:
        process.signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(error):
            connection.execute(SEARCH)
        assert time.monotonic() - begun < 3
    assert db.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (
        0,
    )


def test_a_search_that_waits_for_a_lock_ends_by_the_roles_own_timeout(impatient, dsn):
    with psycopg.connect(dsn) as other, impatient("lock_timeout") as connection:
        other.execute("LOCK TABLE documents")
        with pytest.raises(errors.LockNotAvailable):
            connection.execute(SEARCH)
        other.rollback()
        assert connection.execute(SEARCH.replace("20 s", "100 ms")).fetchall() == [(3,)]


def test_a_transaction_left_open_after_a_search_is_ended(impatient, db):
    with impatient("idle_in_transaction_session_timeout") as connection:
        connection.execute("BEGIN")
        connection.execute(SEARCH.replace("20 s", "100 ms"))
        time.sleep(0.3)
        with pytest.raises(errors.IdleInTransactionSessionTimeout):
            connection.execute(SEARCH)
    assert db.execute("SELECT count(*) FROM pgrerank.counted_searches").fetchone() == (0,)
