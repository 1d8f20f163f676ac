from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.helpers.workers import wait_for, worker

pytest.importorskip("langchain_core")
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator
from langchain_core.structured_query import StructuredQuery as Asked

from pgrerank.catalog import call_statement
from pgrerank.errors import InstallError
from pgrerank.langchain import PgrerankRetriever, PgrerankTranslator


@pytest.fixture
def retriever(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create()
    db.execute("UPDATE documents SET lang = CASE id WHEN 1 THEN 'de' ELSE 'en' END")
    with worker(dsn, tmp_path):
        wait_for(db, "s.pending = 0")
        yield PgrerankRetriever(
            reranker="documents",
            connect=lambda: psycopg.connect(dsn),
            content=["title", "body"],
            exclude=["tenant", "published", "extra"],
            k=2,
        )


def test_a_schema_of_another_version_is_refused(db, retriever):
    db.execute(
        "CREATE OR REPLACE FUNCTION pgrerank.schema_version() RETURNS text LANGUAGE sql IMMUTABLE"
        " SET search_path FROM CURRENT AS $$ SELECT '7.1.0' $$"
    )
    with pytest.raises(InstallError, match=r"has pgrerank 7\.1\.0, this package is"):
        retriever.invoke("an exhausted pool")


def test_documents_come_best_first_with_what_the_search_says(db, retriever):
    found = retriever.invoke("an exhausted pool")
    rows = db.execute(
        "SELECT id::text, title || E'\\n' || body, score, rank FROM"
        " pgrerank.documents_search('an exhausted pool', top_k => 2) JOIN documents USING (id)"
        " ORDER BY rank"
    ).fetchall()
    assert [(d.id, d.page_content) for d in found] == [row[:2] for row in rows]
    assert found[0].metadata["score"] == pytest.approx(rows[0][2], abs=1e-3)
    assert found[0].metadata | {"score": 0} == {
        "id": int(found[0].id),
        "lang": "de" if found[0].id == "1" else "en",
        "score": 0,
        "rank": 1,
        "stage": "cross_encoder",
        "degraded": False,
        "relevance": None,
    }


def test_it_takes_arguments_runs_async_and_in_a_chain(retriever):
    retriever.arguments = {"filter": {"lang": "de"}, "stages": ["dense"]}
    chain = retriever | RunnableLambda(lambda documents: [d.id for d in documents])
    assert chain.invoke("x") == asyncio.run(chain.ainvoke("x")) == ["1"]
    retriever.exclude = []
    [document] = retriever.invoke("x")
    assert document.metadata["tenant"] == 1
    assert document.metadata["stage"] == "dense"
    assert "title" not in document.metadata


def test_errors_name_the_reranker_and_the_connection_stays_secret(retriever, dsn):
    assert "connect" not in repr(retriever) + retriever.model_dump_json()
    retriever.reranker = "typo"
    with pytest.raises(psycopg.errors.UndefinedObject, match='"typo" does not exist'):
        retriever.invoke("x")


COMPARISONS = {
    Comparator.EQ: (2020, [2]),
    Comparator.NE: (2020, [1, 3, 4]),
    Comparator.GT: (2020, [3]),
    Comparator.GTE: (2020, [2, 3]),
    Comparator.LT: (2020, [1]),
    Comparator.LTE: (2020, [1, 2]),
    Comparator.IN: ([2019, 2021], [1, 3]),
    Comparator.NIN: ([2019, 2021], [2, 4]),
}


def test_structured_queries_become_filters(db, source):
    db.execute(
        "CREATE TABLE notes (id int PRIMARY KEY, body text DEFAULT 'note', day date,"
        " tags text[], meta jsonb DEFAULT '{}')"
    )
    db.execute(
        "INSERT INTO notes (id, day, tags, meta) SELECT i, date '2026-01-01' + i,"
        " ARRAY['t' || i, 'all'], jsonb_build_object('year', 2018 + i, 'who', 'w' || i)"
        " FROM generate_series(1, 3) i"
    )
    db.execute("INSERT INTO notes VALUES (4)")
    db.execute("SELECT pgrerank.create_reranker('notes', 'notes', '{body}')")
    while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass

    def found(filter_, path=None, limit=None):
        asked = Asked(query="note", filter=filter_, limit=limit)
        query, arguments = asked.accept(PgrerankTranslator(path))
        statement, values = call_statement("notes_search", {"query": query, **arguments})
        return sorted(row[0] for row in db.execute(statement, values))

    for comparator, (value, expected) in COMPARISONS.items():
        assert found(Comparison(comparator, "year", value), "meta") == expected, comparator
    assert found(Comparison(Comparator.LIKE, "who", "w_"), "meta") == [1, 2, 3]
    assert found(Comparison(Comparator.CONTAIN, "tags", "t2")) == [2]
    day = {"date": "2026-01-03", "type": "date"}
    late = Comparison(Comparator.GTE, "day", day)
    assert found(late) == [2, 3]
    second = Comparison(Comparator.EQ, "id", 2)
    assert found(Operation(Operator.AND, [late, second])) == [2]
    assert found(Operation(Operator.OR, [Comparison(Comparator.EQ, "id", 1), second])) == [1, 2]
    assert found(Operation(Operator.NOT, [late])) == [1, 4]
    assert found(None) == [1, 2, 3, 4]
    assert len(found(None, limit=2)) == 2
