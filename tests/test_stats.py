"""pgrerank.stats: what is counted, by whom, and what a search pays for it."""

from __future__ import annotations

import concurrent.futures
import os
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import namedtuple_row

from pgrerank.doctor import Severity, examine
from pgrerank.embedded.cluster import PASSWORD_FILE
from tests.helpers.servers import database, standby
from tests.helpers.workers import wait_for, worker

SEARCH = "SELECT id FROM pgrerank.documents_search(%s, top_k => 2)"


def stats(db, reranker: str = "documents") -> dict:
    cursor = db.cursor(row_factory=namedtuple_row)
    cursor.execute("SELECT * FROM pgrerank.stats WHERE reranker = %s", (reranker,))
    return {row.stage: row for row in cursor.fetchall()}


@pytest.fixture
def lexical(source):
    """A reranker that needs no worker."""
    source.create(embedding_model=None, late_interaction_model=None, cross_encoder_model=None)
    source.encode_by_hand()
    return source


def test_searches_are_counted_by_stage_before_and_after_they_are_summed_up(
    dsn, db, source, tiny_models, tmp_path
):
    source.models(**tiny_models)
    source.create(timeout="20 s")
    with worker(dsn, tmp_path, "--no-ingest"), worker(dsn, tmp_path, "--no-serve"):
        wait_for(db, "pending = 0")
        for query in ("pool", "bread", "cat"):
            db.execute(SEARCH, (query,))
        db.execute("SELECT * FROM pgrerank.documents_search_many('{pool, flour}')")
        before = stats(db)
        assert list(before) == [
            *("encode_query", "dense", "lexical", "maxsim", "cross_encoder", "passages", "total")
        ]
        assert {row.calls for row in before.values()} == {5}
        assert before["cross_encoder"].documents == before["total"].documents == 15
        for row in before.values():
            assert sum(row.histogram) == 5
            assert float(row.mean_ms) == pytest.approx(float(row.milliseconds) / 5, abs=0.001)
        assert before["total"].degraded == {}
        assert before["total"].milliseconds >= before["cross_encoder"].milliseconds > 0
        for _ in range(100):
            if not db.execute("SELECT count(*) FROM pgrerank.counted_searches").fetchone()[0]:
                break
            db.execute("SELECT pg_sleep(0.2)")
        assert db.execute("SELECT count(*) FROM pgrerank.counted_searches").fetchone() == (0,)
        assert stats(db) == before


def test_buckets_are_those_of_the_bounds(db, lexical):
    for took in (0.5, 1, 1.001, 99, 20000):
        db.execute(
            "INSERT INTO pgrerank.counted_searches VALUES"
            " ('documents', jsonb_build_object('total', %s::numeric), '{}')",
            (took,),
        )
    [bounds] = db.execute("SELECT pgrerank.stats_bounds()").fetchone()
    counts = dict(zip(bounds, stats(db)["total"].histogram, strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {
        1: 2,
        2: 1,
        100: 1,
        float("inf"): 1,
    }


def test_kinds_of_trouble_are_counted_and_no_reason_is_kept(db, source):
    source.create(timeout="300 ms")
    source.encode_by_hand()
    db.execute(SEARCH, ("a secret pool",))
    assert stats(db)["total"].degraded == {"unreachable": 1}
    db.execute("SELECT pgrerank.sum_searches()")
    assert stats(db)["total"].degraded == {"unreachable": 1}
    tables = ("counted_searches", "summed_searches", "stats", "stats_resets")
    kept = [db.execute(f"SELECT * FROM pgrerank.{table}").fetchall() for table in tables]
    assert "secret" not in str(kept)
    troubles = {
        "the deadline passed before maxsim": "deadline",
        "no worker is alive, of 2 known": "unreachable",
        "the connection to the worker broke": "unreachable",
        "the worker refused: the worker is busy: 64 requests wait": "refused",
        "cross-encoder a: the worker refused: x; its fallback b: no worker is known": "refused",
        "HNSW found 3 documents where 100 were asked for": "shortage",
        "something new": "other",
    }
    for reason, kind in troubles.items():
        assert db.execute("SELECT pgrerank._trouble(%s, NULL)", (reason,)).fetchone() == (kind,)
    assert db.execute("SELECT pgrerank._trouble(NULL, 'x')").fetchone() == ("fallback",)


def test_a_role_that_may_search_needs_no_right_and_sees_nothing(dsn, db, lexical, make_role):
    role = make_role()
    db.execute(f"GRANT SELECT ON documents TO {role}")
    with psycopg.connect(make_conninfo(dsn, user=role, password=role), autocommit=True) as other:
        assert len(other.execute(SEARCH, ("pool",)).fetchall()) == 1
        for table in ("counted_searches", "stats"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                other.execute(f"SELECT * FROM pgrerank.{table}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            other.execute("SELECT pgrerank.reset_stats()")
        db.execute(f"GRANT pg_monitor TO {role}")
        assert stats(other)["total"].calls == 1
        db.execute(f"REVOKE pg_monitor FROM {role}")
        db.execute("REVOKE INSERT ON pgrerank.counted_searches FROM PUBLIC")
        assert len(other.execute(SEARCH, ("pool",)).fetchall()) == 1
    assert stats(db)["total"].calls == 1


def test_a_read_only_transaction_searches_and_is_not_counted(db, lexical):
    with db.transaction():
        db.execute("SET TRANSACTION READ ONLY")
        assert len(db.execute(SEARCH, ("pool",)).fetchall()) == 1
    assert stats(db) == {}


def test_searches_at_once_and_sums_at_once_lose_and_double_nothing(dsn, db, lexical):
    def search(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for _ in range(20):
                connection.execute(SEARCH, ("pool",))
                connection.execute("SELECT pgrerank.sum_searches()")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(search, range(4)))
    assert stats(db)["total"].calls == 80
    db.execute("SELECT pgrerank.sum_searches()")
    assert stats(db)["total"].calls == 80


def test_what_a_search_counts_is_not_written_ahead(db, lexical):
    """So its commit has nothing to wait for."""
    if db.info.server_version < 180000:
        pytest.skip("only Postgres 18 tells what one session has written ahead")

    def written() -> int:
        db.execute("SELECT pg_stat_force_next_flush()")
        return db.execute(
            "SELECT wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid())"
        ).fetchone()[0]

    db.execute(SEARCH, ("pool",))
    before = written()
    with db.transaction():
        for _ in range(50):
            db.execute(SEARCH, ("pool",))
    after = written()
    assert stats(db)["total"].calls == 51
    assert after - before < 50 * 20
    db.execute("CREATE TABLE others AS SELECT generate_series(1, 50)")
    assert written() - after > 50 * 20, "what is written ahead is seen"


def test_statistics_begin_anew_and_go_with_their_reranker(db, lexical, source):
    source.create("others", embedding_model=None, late_interaction_model=None)
    for name in ("documents", "others"):
        db.execute(
            "INSERT INTO pgrerank.counted_searches VALUES (%s, '{\"total\": 1}', '{}')", (name,)
        )
    db.execute("SELECT pgrerank.sum_searches()")
    db.execute("SELECT pgrerank.reset_stats('others')")
    assert stats(db, "others") == {}
    assert stats(db)["total"].since is None
    with pytest.raises(psycopg.errors.UndefinedObject, match="documents, others"):
        db.execute("SELECT pgrerank.reset_stats('nobody')")
    db.execute("SELECT pgrerank.reset_stats()")
    db.execute(SEARCH, ("pool",))
    assert stats(db)["total"].calls == 1
    assert stats(db)["total"].since is not None
    db.execute("SELECT pgrerank.drop_reranker('documents')")
    assert db.execute("SELECT count(*) FROM pgrerank.stats").fetchone() == (0,)


def test_a_standby_searches_and_has_what_was_summed_up_before(dsn, db, lexical, open_folder):
    [data] = db.execute("SHOW data_directory").fetchone()
    if not os.access(Path(data) / PASSWORD_FILE, os.R_OK):
        pytest.skip("a standby is made of the embedded server alone")
    db.execute(SEARCH, ("pool",))
    db.execute("SELECT pgrerank.sum_searches()")
    db.execute(SEARCH, ("pool",))
    with (
        standby(dsn, Path(data), open_folder) as server,
        psycopg.connect(database(dsn, server), autocommit=True) as other,
    ):
        assert len(other.execute(SEARCH, ("pool",)).fetchall()) == 1
        assert stats(other)["total"].calls == 1
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            other.execute("SELECT pgrerank.reset_stats()")
        assert not [finding for finding in examine(other) if finding.severity == Severity.ERROR]
    assert stats(db)["total"].calls == 2
