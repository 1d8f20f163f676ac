"""Many queries in one call: the rows that single calls return, encoded by one request."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from tests.helpers.sources import Source
from tests.helpers.workers import asking, wait_for, worker

STAGES = [
    {},
    {"stages": ["dense"]},
    {"stages": ["lexical", "maxsim"]},
    {"stages": ["dense", "lexical", "maxsim"]},
    {"stages": ["dense", "maxsim_bit", "maxsim"]},
]
WORDS = ["cat", "pool", "bread", "water", "salt", "flour", "connection", "day"]


@pytest.fixture(scope="module")
def many_dsn(make_database, pgrerank_template, tiny_models, tmp_path_factory):
    """Forty documents, one of them of many passages, that a worker has encoded and stays up for."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        source = Source(connection)
        connection.execute(
            "INSERT INTO documents (title, body, tenant) SELECT a.word, b.word, length(b.word)"
            " FROM unnest(%s::text[]) a (word), unnest(%s::text[]) b (word) LIMIT 37",
            (WORDS, WORDS),
        )
        connection.execute(
            "INSERT INTO documents (title, body, tenant) VALUES ('long', %s, 4)",
            (" ".join(f"{word} {i}." for i in range(60) for word in WORDS),),
        )
        source.models(**tiny_models)
        source.create(timeout="20 s", candidates=20, maxsim_top=15, maxsim_bit_top=18)
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0 AND encoded = source_rows")
            assert connection.execute(
                "SELECT max(passage) > pgrerank._most_passages() FROM pgrerank.documents_1_passages"
            ).fetchone() == (True,)
            yield dsn


@pytest.fixture
def many(many_dsn):
    with psycopg.connect(many_dsn, autocommit=True) as connection:
        yield connection


def rows(connection, function: str, first: str, given: dict) -> list[tuple]:
    named = "".join(f", {name} => %({name})s" for name in given)
    return connection.execute(
        f"SELECT * FROM pgrerank.{function}(%(first)s{named})", {"first": first, **given}
    ).fetchall()


def one_by_one(connection, queries: list[str], given: dict) -> list[tuple]:
    """What single calls say, as a call for many says it."""
    return [
        (number, *row)
        for number, query in enumerate(queries, 1)
        for row in rows(connection, "documents_search", query, given)
    ]


@settings(max_examples=15)
@given(
    queries=st.lists(st.lists(st.sampled_from(WORDS), min_size=1).map(" ".join), max_size=6),
    top_k=st.integers(1, 12),
    only=st.sampled_from([{}, {"filter": Jsonb({"tenant": 4})}, {"filter": Jsonb({"tenant": 99})}]),
    stages=st.sampled_from(STAGES),
    settings_of_call=st.fixed_dictionaries(
        {},
        optional={
            "early_exit": st.just(0.0),
            "candidates": st.integers(1, 60),
            "maxsim_bit_top": st.integers(15, 40),
            "blend": st.sampled_from([Jsonb({}), Jsonb({"dense": 1, "maxsim": 0.3})]),
            "signals": st.just(Jsonb({"tenant": {"log": True, "weight": 0.2}})),
            "group_by": st.just("tenant"),
            "diversity": st.just(0.3),
        },
    ),
)
def test_each_query_has_the_rows_of_a_call_of_its_own(
    many, queries, top_k, only, stages, settings_of_call
):
    asked = {"top_k": top_k, "strict": True, **only, **stages, **settings_of_call}
    together = rows(many, "documents_search_many", queries, asked)
    single = one_by_one(many, queries, asked)
    assert together == single


def test_what_fails_together_is_said_by_each_query(many):
    asked = {"stages": ["dense", "lexical", "maxsim"]}
    queries = ["water salt", "cat", "long bread"]
    whole = rows(many, "documents_search_many", queries, asked)
    with many.transaction(force_rollback=True):
        many.execute(
            "UPDATE pgrerank.documents_1_tokens SET tokens = '\\x00' WHERE key = ("
            " SELECT d.id FROM documents d WHERE (d.title, d.body) = ('cat', 'cat'))"
        )
        together = rows(many, "documents_search_many", queries, asked)
        single = one_by_one(many, queries, asked)
    assert together == single
    assert any("MaxSim of" in str(row) for row in together)
    assert not any("MaxSim of" in str(row) for row in whole)


def test_queries_are_encoded_by_one_request_a_hundred(many):
    def requests(ask) -> int:
        return sum(
            int(count) for lane, count, *_ in ask("SHOW status") if lane in ("encode", "ingest")
        )

    queries = [f"pool number {number}" for number in range(120)]
    asked = {"stages": ["dense", "maxsim"], "top_k": 1}
    with asking(many) as ask:
        before = requests(ask)
        assert len(rows(many, "documents_search_many", queries, asked)) == 120
        assert requests(ask) == before + 2


def test_no_queries_have_no_rows_and_an_empty_one_is_refused(many):
    assert rows(many, "documents_search_many", [], {}) == []
    assert rows(many, "documents_search_many", None, {}) == []
    for wrong, named in (
        (["cat", None], "query 2 of 2 is NULL"),
        ([" ", "cat", ""], "1 of 3 is ' '"),
        (["cat", "\t\n"], "query 2 of 2 is '\t\n'"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"nothing to.*{named}"):
            rows(many, "documents_search_many", wrong, {})


def test_without_a_worker_each_is_answered_by_its_words(db, source):
    source.create()
    source.encode_by_hand()
    found = db.execute(
        "SELECT query_number, id, stage, degraded FROM pgrerank.documents_search_many(%s)",
        (["cat", "bread"],),
    ).fetchall()
    assert found == [(1, 2, "lexical", True), (2, 3, "lexical", True)]
    with pytest.raises(psycopg.Error) as raised:
        db.execute("SELECT * FROM pgrerank.documents_search_many('{cat}', strict => true)")
    assert raised.value.sqlstate == "PGR01"
    db.execute("SELECT pgrerank.drop_reranker('documents')")
    assert db.execute("SELECT to_regproc('pgrerank.documents_search_many')").fetchone() == (None,)
