"""Continuous checks: what they find, when they run, and what they give way to."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import math
import time

import psycopg
import pytest

from pgrerank.doctor import Severity, examine
from pgrerank.worker.observing import checks as checks_module
from pgrerank.worker.observing.checks import Checks
from tests.helpers.workers import wait_for, worker

QUERIES = [
    "the pool", "a cat", "bread", "sleeps most", "flour and salt", "connection given back",
    "water", "time", "the day", "exhausted", "is it back", "cat and bread", "pool water",
    "given time", "salt", "day and pool", "most of the bread", "no connection",
]  # fmt: skip


def check_all(db, *, anew: bool = False) -> int:
    """Check whatever is to be checked, as an idle worker does."""
    [now] = db.execute("SELECT now()").fetchone()
    since = now if anew else now - datetime.timedelta(days=1)
    for count in itertools.count():
        chosen = db.execute(
            "SELECT reranker, query FROM pgrerank.next_check(%s)", (since,)
        ).fetchone()
        if chosen is None:
            return count
        db.execute("SELECT pgrerank.check_search(%s, %s)", chosen)
    raise AssertionError


def found(db) -> dict[tuple[str, str | None], tuple]:
    rows = db.execute(
        "SELECT measure, stage, value, queries, is_bad FROM pgrerank.checks"
    ).fetchall()
    return {(measure, stage): tuple(rest) for measure, stage, *rest in rows}


def judge(db, relevant: dict[str, int]) -> None:
    for number, (query, key) in enumerate(relevant.items()):
        db.execute("INSERT INTO pgrerank.queries VALUES ('ours', %s, %s)", (str(number), query))
        db.execute("INSERT INTO pgrerank.qrels VALUES ('ours', %s, %s, 1)", (str(number), str(key)))


@pytest.fixture
def served(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create(timeout="20 s", blend=json.dumps({}), early_exit=0)
    with worker(dsn, tmp_path, "--no-checks"):
        wait_for(db, "pending = 0")
        yield source


def test_a_stage_that_hurts_by_judgements_is_found_and_told_by_the_doctor(served, db):
    """Relevant is what the cross-encoder puts behind what MaxSim has first."""
    relevant = {}
    for query in QUERIES:
        [traced] = db.execute("SELECT pgrerank.trace('documents', %s)", (query,)).fetchone()
        first = traced["ranks"]["maxsim"].index(1)
        if traced["ranks"]["cross_encoder"][first] > 1:
            relevant[query] = traced["keys"][first]
    assert len(relevant) >= 10
    judge(db, relevant)
    wait_for(db, "NOT EXISTS (SELECT FROM pgrerank.announcements WHERE waiting > 0)")
    assert check_all(db) == len(relevant)
    assert check_all(db) == 0, "a query is checked once a day"
    value, queries, is_bad = found(db)["stage_gain", "cross_encoder"]
    assert (queries, is_bad) == (len(relevant), True)
    assert value <= 1 / math.log2(3) - 1
    assert found(db)["hnsw_recall", None] == (1, len(relevant), False)
    assert "sleeps" not in str(db.execute("SELECT * FROM pgrerank.checked_queries").fetchall())

    [told] = [f for f in examine(db) if f.check == "quality.checks"]
    assert told.severity == Severity.WARNING
    assert "stage cross_encoder hurts: nDCG@10 is" in told.message
    assert told.remedy == "pgrerank tune documents --qrels SET"

    db.execute("SELECT pgrerank.alter_reranker('documents', maxsim_top => 2)")
    assert found(db) == {}, "with other settings all is to be seen anew"
    assert check_all(db) == len(relevant)


def test_clicks_and_logged_queries_are_checked_and_stale_vectors_seen(served, db):
    db.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 1)")
    db.execute("SELECT count(*) FROM pgrerank.documents_search('bread')")
    db.execute("SELECT pgrerank.feedback('documents', 'a cat', 2)")
    db.execute("SELECT pgrerank.feedback('documents', 'nothing of this', 2, 0)")
    assert check_all(db) == 2
    assert found(db)["stage_gain", "maxsim"][1] == 1
    assert found(db)["stale_documents", None] == (0, 2, False)
    db.execute("ALTER TABLE documents DISABLE TRIGGER USER")
    db.execute("UPDATE documents SET body = 'another text' WHERE id = 2")
    assert check_all(db, anew=True) == 2
    assert found(db)["stale_documents", None][0] > 0
    assert any("have vectors of another text" in finding.message for finding in examine(db))


def test_gains_are_those_that_ndcg_has(db):
    """Of five documents in three orders; c is somewhat relevant, e very."""
    traced = {
        "keys": ["e", "c", "b", "a", "d"],
        "ranks": {
            "dense": [5, 3, 2, 1, 4],
            "lexical": [4, 1, 3, 2, 5],
            "cross_encoder": [1, 2, None, None, None],
        },
    }
    [gains] = db.execute(
        "SELECT pgrerank._gains(%s, %s)", (json.dumps(traced), json.dumps({"c": 1, "e": 3}))
    ).fetchone()
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    dense = 3 / math.log2(6) + 1 / math.log2(4)
    lexical = 3 / math.log2(5) + 1 / math.log2(2)
    assert gains == {
        "lexical": pytest.approx((lexical - dense) / ideal),
        "cross_encoder": pytest.approx((ideal - lexical) / ideal),
    }
    for relevant in ({"z": 1}, {}):
        assert db.execute(
            "SELECT pgrerank._gains(%s, %s)", (json.dumps(traced), json.dumps(relevant))
        ).fetchone() == (None,)


@pytest.fixture
def lexical(db, source):
    """A reranker with a query to check, which needs no worker."""
    source.create(embedding_model=None, late_interaction_model=None, cross_encoder_model=None)
    source.encode_by_hand()
    judge(db, {"pool": 1})
    return source


def test_nothing_is_checked_while_documents_or_requests_wait(db, lexical):
    db.execute("INSERT INTO documents (title) VALUES ('new')")
    assert check_all(db) == 0
    lexical.encode_by_hand()
    db.execute(
        "INSERT INTO pgrerank.announcements (worker, host, port, is_registered, capacity, waiting)"
        " VALUES (7, 'h', 1, false, 1, 1)"
    )
    assert check_all(db) == 0
    db.execute("UPDATE pgrerank.announcements SET waiting = 0")
    db.execute(
        "SELECT pgrerank.register_model('paid', 'cross_encoder', 'https://x.example', NULL, 'http',"
        """ options => '{"api": "cohere"}')"""
    )
    db.execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => 'paid')")
    assert check_all(db) == 0, "no endpoint is asked for what nobody wants to know"
    db.execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => '')")
    assert check_all(db) == 1


@pytest.mark.parametrize("somebody_searches", [True, False])
def test_a_check_breaks_off_for_a_search_or_after_its_time(
    dsn, db, lexical, monkeypatch, somebody_searches
):
    monkeypatch.setattr(checks_module, "LONGEST", "600ms")
    begun = time.monotonic()

    def asked() -> int:
        return int(somebody_searches and time.monotonic() - begun > 0.3)

    with psycopg.connect(dsn) as holder:
        holder.execute("LOCK TABLE pgrerank.documents_1_words")
        asyncio.run(Checks(dsn, asked, lambda: False)._check())
    assert 0.3 <= time.monotonic() - begun < 3
    kept = db.execute("SELECT stale, gains FROM pgrerank.checked_queries").fetchall()
    assert kept == ([] if somebody_searches else [(None, None)])
    assert check_all(db) == int(somebody_searches), "what takes too long isn't tried again soon"
