"""The log of searches: who writes it, what is in it, when it goes."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.helpers.workers import wait_for, worker

SEARCH = "SELECT id FROM pgrerank.documents_search(%s, top_k => 2)"


@pytest.fixture
def served(dsn, db, source, tiny_models, tmp_path):
    """A reranker that remembers every search, with a worker."""
    source.models(**tiny_models)
    source.create(log_sample=1, maxsim_top=1, timeout="20 s")
    with worker(dsn, tmp_path):
        wait_for(db, "pending = 0 AND encoded = source_rows")
        yield dsn


def logged(db) -> list[str]:
    return [query for (query,) in db.execute("SELECT query FROM pgrerank.searches ORDER BY id")]


def test_a_search_is_remembered_with_ranks_times_and_arguments(served, db):
    given = json.dumps({"tenant": 1, "lang": None})
    found = db.execute(
        "SELECT id, dense_rank, maxsim_rank, cross_encoder_rank FROM pgrerank.documents_search("
        "'a  pool 数据库', top_k => 2, filter => %s, candidates => 3) ORDER BY rank",
        (given,),
    ).fetchall()
    cursor = db.cursor(row_factory=psycopg.rows.dict_row)
    [row] = cursor.execute("SELECT * FROM pgrerank.searches").fetchall()
    assert (row["query"], row["reranker"], row["generation"]) == ("a  pool 数据库", "documents", 1)
    assert row["arguments"] == {"top_k": 2, "filter": {"tenant": 1, "lang": None}, "candidates": 3}
    ranks = zip(
        row["keys"],
        *(row["ranks"][stage] for stage in ("dense", "maxsim", "cross_encoder")),
        strict=True,
    )
    assert [(int(key), *rest) for key, *rest in ranks] == found
    assert found[1][3] is None, "the cross-encoder saw one document only"
    assert (row["stage"], row["degraded"], row["searched_by"]) == (
        "cross_encoder",
        False,
        "postgres",
    )
    assert row["times"].keys() == {
        "encode_query",
        "dense",
        "lexical",
        "maxsim",
        "cross_encoder",
        "passages",
        "total",
    }


def test_what_cannot_be_asked_again_is_not_remembered(served, db):
    db.execute("SELECT * FROM pgrerank.documents_search('by keys', keys => '{1,2}')")
    vector = str([0.1] * 32)
    db.execute("SELECT * FROM pgrerank.documents_search(NULL, query_embedding => %s)", (vector,))
    db.execute("SELECT * FROM pgrerank.explain_search('documents', 'explained')")
    assert logged(db) == []


def test_a_role_without_the_right_searches_all_the_same(served, db, make_role):
    role = make_role()
    db.execute(f"GRANT SELECT ON documents TO {role}")
    with psycopg.connect(
        make_conninfo(served, user=role, password=role), autocommit=True
    ) as connection:
        assert len(connection.execute(SEARCH, ("unseen",)).fetchall()) == 2
        assert logged(db) == []
        db.execute(f"GRANT INSERT ON pgrerank.searches TO {role}")
        connection.execute(SEARCH, ("seen",))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM pgrerank.searches")
    assert logged(db) == ["seen"]
    assert db.execute("SELECT searched_by FROM pgrerank.searches").fetchone() == (role,)


def test_a_read_only_transaction_searches_without_a_log(served, db):
    with db.transaction():
        db.execute("SET TRANSACTION READ ONLY")
        assert len(db.execute(SEARCH, ("read only",)).fetchall()) == 2
    assert logged(db) == []


def test_a_degraded_search_is_remembered_with_its_reason(db, source):
    source.create(log_sample=1, timeout="100 ms")
    source.encode_by_hand()
    db.execute(SEARCH, ("pool",))
    db.execute(
        "SELECT * FROM pgrerank.documents_search('nothing has these words', strict => false)"
    )
    rows = db.execute(
        "SELECT stage, degraded, reason FROM pgrerank.searches ORDER BY id"
    ).fetchall()
    assert rows[0][:2] == ("lexical", True)
    assert rows[1][:2] == (None, True)
    assert "no worker" in rows[0][2]


def test_a_share_of_searches_is_remembered(served, db):
    db.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 0.5)")
    db.execute("SELECT setseed(0.42)")
    for number in range(40):
        db.execute(SEARCH, (f"number {number}",))
    assert 8 <= len(logged(db)) <= 32
    db.execute("DELETE FROM pgrerank.searches")
    db.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 0)")
    db.execute(SEARCH, ("off",))
    assert logged(db) == []


def test_the_log_is_forgotten_by_age_by_the_worker_and_with_its_reranker(served, db, source):
    for query in ("old", "young"):
        db.execute(SEARCH, (query,))
    db.execute(
        "UPDATE pgrerank.searches SET searched_at = now() - interval '3 days' WHERE query = 'old'"
    )
    assert db.execute("SELECT pgrerank.forget_searches()").fetchone() == (0,)
    assert db.execute("SELECT pgrerank.forget_searches('other', '0')").fetchone() == (0,)
    assert db.execute("SELECT pgrerank.forget_searches('documents', '1 day')").fetchone() == (1,)
    assert logged(db) == ["young"]
    db.execute("UPDATE pgrerank.searches SET searched_at = now() - interval '31 days'")
    source.connection.execute("INSERT INTO documents (title) VALUES ('wakes the worker')")
    wait_for(db, "(SELECT count(*) FROM pgrerank.searches) = 0")
    db.execute(SEARCH, ("last",))
    db.execute("SELECT pgrerank.drop_reranker('documents')")
    assert logged(db) == []


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("log_sample", 1.5, "0 to 1"),
        ("log_sample", -0.1, "0 to 1"),
        ("log_retention", "0", "1 min"),
    ],
)
def test_settings_of_the_log_have_bounds(db, source, setting, value, wanted):
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"{setting} is .*{wanted}"):
        source.create(**{setting: value})
