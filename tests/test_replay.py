"""Logged searches, asked again: how their answers change, and what of them is shown."""

from __future__ import annotations

import json
import math

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.evaluation.overlap import overlap, rank_biased_overlap
from pgrerank.judgements import Judgements, save_set
from tests.helpers.workers import wait_for, worker


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done.stdout, " ".join(done.stderr.split())


def replayed(dsn: str, *options: str) -> dict:
    return json.loads(run("replay", "documents", "--dsn", dsn, "--json", *options)[0])


@pytest.fixture
def log(db, source):
    """The source, whose searches are logged; without a worker, full text answers them."""
    source.create(log_sample="1")
    source.encode_by_hand()
    db.execute("SET client_min_messages = error")
    return source


def search(db: psycopg.Connection, query: str, **arguments: object) -> list[int]:
    named = "".join(f", {name} => %({name})s" for name in arguments)
    rows = db.execute(
        f"SELECT id FROM pgrerank.documents_search(%(query)s, strict => false{named})",
        {"query": query, **arguments},
    )
    return [key for (key,) in rows]


# How alike two orders are


def test_overlap_is_of_the_longer_answer():
    assert overlap("ab", "bcde") == 1 / 4
    assert overlap("abc", "cab") == 1
    assert (overlap("", "a"), overlap("", "")) == (0, 1)


def test_rank_biased_overlap_is_the_papers():
    assert rank_biased_overlap("abcdef", "abcdef") == pytest.approx(1)
    assert rank_biased_overlap("abc", "xyz") == 0
    assert (rank_biased_overlap("", "a"), rank_biased_overlap("", "")) == (0, 1)
    # Agreement 1 at the first rank, 1/2 at the second and, so it is taken, at all beyond it.
    assert rank_biased_overlap("ab", "ac", 0.5) == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    # Nothing at the first rank; at the second, one of the two is in the shorter list.
    assert rank_biased_overlap("a", "ba", 0.5) == pytest.approx(0.25 * 0.5 + 0.25 * 0.5)
    # A shorter answer that is the beginning of the other does not contradict it.
    assert rank_biased_overlap("abc", "abcdef") == pytest.approx(1)
    late, early = rank_biased_overlap("abcdef", "abcdfe"), rank_biased_overlap("abcdef", "bacdef")
    assert early < late < 1


# Asked again


def test_nothing_changes_where_nothing_has_changed(db, dsn, log):
    assert search(db, "cat") == [2]
    assert search(db, "pool", filter='{"title": "Pools"}', top_k=1) == [1]
    assert search(db, "elephant") == []
    found = replayed(dsn)
    assert (found["searches"], found["overlap"], found["same_first"]) == (3, 1, 1)
    assert found["rank_biased_overlap"] == 1
    assert found["degraded"] == {"then": 3, "now": 2}, "an empty answer says nothing of its stage"
    assert found["most_changed"] == []
    assert (found["failed"], found["measures"]) == ({}, {})
    assert db.execute("SELECT count(*) FROM pgrerank.searches").fetchone() == (3,)


def test_what_changed_most_comes_first_and_texts_are_shown_on_demand_only(db, dsn, log):
    for query in ("water", "cat water", "secret cat", "exhausted"):
        search(db, query)
    db.execute("DELETE FROM documents WHERE title = 'Cats'")
    found = replayed(dsn)
    assert found["overlap"] == (1 + 1 / 2 + 0 + 1) / 4
    assert found["same_first"] < 1
    changed = found["most_changed"]
    assert [row["overlap"] for row in changed] == [0, 0.5]
    assert (changed[0]["id"], changed[0]["first_then"], changed[0]["first_now"]) == (3, "2", None)
    assert len(replayed(dsn, "--show", "1")["most_changed"]) == 1
    assert replayed(dsn, "--limit", "2")["searches"] == 2
    texts = replayed(dsn, "--texts")["most_changed"]
    assert [row["query"] for row in texts] == ["secret cat", "cat water"]
    replay = ("replay", "documents", "--dsn", dsn)
    for shown in (json.dumps(found), run(*replay)[0], run(*replay)[1]):
        assert "secret" not in shown
    table, _ = run(*replay, "--texts")
    assert "secret cat" in table
    assert "62.5%" in table


def test_a_search_that_fails_now_is_left_out_and_counted(db, dsn, log):
    search(db, "cat")
    search(db, "cat", filter='{"lang": ["en"]}')
    db.execute("ALTER TABLE documents DROP COLUMN lang")
    found = replayed(dsn)
    assert (found["searches"], found["failed"]) == (1, {"UndefinedColumn": 1})
    _, said = run("replay", "documents", "--dsn", dsn)
    assert "left out (UndefinedColumn): 1" in said
    db.execute("DELETE FROM pgrerank.searches WHERE id = 1")
    _, error = run("replay", "documents", "--dsn", dsn, code=1)
    assert "none of 1 logged searches can be asked again" in error
    assert "lang" in error


def test_an_empty_log_says_how_to_fill_it(db, dsn, log):
    _, error = run("replay", "documents", "--dsn", dsn, code=1)
    assert "no search of the last 7 days in its log. log_sample is 1: wait" in error
    assert "GRANT INSERT ON pgrerank.searches TO app" in error
    search(db, "cat")
    db.execute("UPDATE pgrerank.searches SET searched_at = now() - interval '8 days'")
    db.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 0)")
    _, error = run("replay", "documents", "--dsn", dsn, code=1)
    assert "pgrerank alter documents --log-sample 0.1" in error
    assert replayed(dsn, "--since", "9 days")["searches"] == 1
    _, error = run("replay", "documents", "--dsn", dsn, "--since", "long", code=1)
    assert "interval" in error
    _, error = run("replay", "x", "--dsn", dsn, code=1)
    assert 'reranker "x" does not exist' in error


def test_only_who_may_read_the_log_replays_it(db, dsn, log, make_role):
    search(db, "cat")
    role = make_role()
    db.execute(f"GRANT USAGE ON SCHEMA pgrerank TO {role}")
    db.execute(f"GRANT SELECT ON documents TO {role}")
    other = make_conninfo(dsn, user=role, password=role)
    _, error = run("replay", "documents", "--dsn", other, code=1)
    assert "permission denied" in error


def test_judged_searches_are_measured_before_and_after(db, dsn, log):
    for query in ("water", "CAT  water", "exhausted", "cat water"):
        search(db, query)
    judged = {"a": {"3": 1}, "b": {"2": 1}, "c": {"3": 1}}
    save_set(db, "some", Judgements({"a": "water", "b": "Cat water", "c": "never asked"}, judged))
    found = replayed(dsn, "--qrels", "some", "--measures", "RR@10, R@10")["measures"]
    assert list(found) == ["RR@10", "R@10"]
    assert found["R@10"] == {"then": 1, "now": 1, "gain": 0, "p": 1, "queries": 2}
    db.execute("DELETE FROM documents WHERE title = 'Cats'")
    after = replayed(dsn, "--qrels", "some", "--measures", "R@10")["measures"]["R@10"]
    assert (after["then"], after["now"], after["gain"]) == (1, 0.5, -0.5)
    table, _ = run("replay", "documents", "--dsn", dsn, "--qrels", "some", "--measures", "R@10")
    assert "2 judged queries" in table
    save_set(db, "others", Judgements({"a": "nobody asked"}, {"a": {"1": 1}}))
    _, error = run("replay", "documents", "--dsn", dsn, "--qrels", "others", code=1)
    assert "none of 4 logged searches has the text of one of the 1 judged queries" in error


def test_other_settings_are_tried_on_what_was_asked(db, dsn, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create(log_sample="1")
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0")
        for query in ("which animal sleeps", "bread", "no connection is left"):
            assert len(search(db, query, top_k=3)) == 3
        search(db, "two stages", top_k=2, stages=["dense", "maxsim"])
        same = replayed(dsn)
        assert (same["overlap"], same["rank_biased_overlap"]) == (1, pytest.approx(1))
        assert same["degraded"] == {"then": 0, "now": 0}
        stages = ["encode_query", "dense", "lexical", "maxsim", "cross_encoder", "total"]
        assert list(same["milliseconds"]) == stages
        for times in same["milliseconds"].values():
            for side in ("then", "now"):
                assert 0 < times[side]["p50"] <= times[side]["p95"] < math.inf
        fewer = replayed(dsn, "--stages", "dense")
        assert fewer["milliseconds"]["cross_encoder"]["now"] == {"p50": 0, "p95": 0}
        assert fewer["milliseconds"]["cross_encoder"]["then"]["p50"] > 0
        recalled = [
            search(db, query, top_k=3, stages=["dense"])[0]
            for query in ("which animal sleeps", "bread", "no connection is left", "two stages")
        ]
        firsts = db.execute("SELECT keys[1]::int FROM pgrerank.searches ORDER BY id LIMIT 4")
        stayed = sum(one == other for (one,), other in zip(firsts, recalled, strict=True))
        db.execute("DELETE FROM pgrerank.searches WHERE id > 4")
        assert fewer["same_first"] == stayed / 4
        blended = replayed(dsn, "--blend", '{"dense": 1}')
        assert blended["same_first"] == fewer["same_first"], "recall's score alone decides"
        assert replayed(dsn, "--maxsim-top", "1", "--candidates", "3", "--generation", "1")
        _, error = run("replay", "documents", "--dsn", dsn, "--generation", "9", code=1)
        assert 'reranker "documents" has no generation 9' in error
        for blend, message in (("{", "'{' is not JSON"), ("[1]", "'[1]' is not a JSON object")):
            _, error = run("replay", "documents", "--dsn", dsn, "--blend", blend, code=2)
            assert message in error
