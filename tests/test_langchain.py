from __future__ import annotations

import asyncio
import os

import psycopg
import pytest

from tests.helpers.workers import wait_for, worker

pytest.importorskip("langchain_tests")
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator
from langchain_core.structured_query import StructuredQuery as Asked
from langchain_tests.integration_tests import RetrieversIntegrationTests

from pgrerank.catalog import call_statement
from pgrerank.errors import InstallError
from pgrerank.langchain import PgrerankCompressor, PgrerankRetriever, PgrerankTranslator


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
            aconnect=lambda: psycopg.AsyncConnection.connect(dsn),
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
        "reason": None,
        "relevance": None,
        "passage_start": 0,
        "passage_end": len(found[0].page_content),
    }


def test_a_long_document_comes_as_its_best_passage(db, retriever):
    body = " ".join(f"Flour and water make bread number {number}." for number in range(60))
    db.execute("UPDATE documents SET body = %s WHERE id = 3", (body,))
    wait_for(db, "s.pending = 0")
    retriever.content = None
    [found] = retriever.invoke("flour", k=1, keys=["3"], passages=2)
    start, end = found.metadata["passage_start"], found.metadata["passage_end"]
    assert found.page_content == f"Bread\n{body}"[start:end]
    assert len(found.page_content) < len(body) / 4
    assert found.metadata["passages"][0]["text"] == found.page_content


def test_it_takes_arguments_runs_async_and_in_a_chain(retriever):
    retriever.arguments = {"filter": {"lang": "de"}, "stages": ["dense"]}
    chain = retriever | RunnableLambda(lambda documents: [d.id for d in documents])
    assert chain.invoke("x") == asyncio.run(chain.ainvoke("x")) == ["1"]
    retriever.exclude = []
    [document] = retriever.invoke("x")
    assert document.metadata["tenant"] == 1
    assert document.metadata["stage"] == "dense"
    assert "title" not in document.metadata


def test_arguments_of_a_call_the_text_as_the_reranker_reads_it_and_the_next_page(retriever):
    retriever.content = None
    first = retriever.invoke("an exhausted pool", filter={"lang": "en"})
    assert {d.page_content.split("\n")[0] for d in first} == {"Cats", "Bread"}
    [rest] = retriever.invoke("an exhausted pool", after=[document.id for document in first])
    assert rest.id == "1"
    assert not {"title", "body"} & set(rest.metadata)
    wide = retriever.invoke(
        "an exhausted pool", k=3, group_by="lang", diversity=0.5, signals={"id": {"weight": 1}}
    )
    assert sorted(d.metadata["lang"] for d in wide) == ["de", "en"]


def test_what_the_role_may_not_read_is_not_in_the_metadata(db, dsn, retriever, make_role):
    role = make_role()
    db.execute(f"GRANT SELECT (id, title, body, lang) ON documents TO {role}")
    retriever.connect = lambda: psycopg.connect(dsn, user=role, password=role)
    retriever.exclude = []
    document = retriever.invoke("an exhausted pool")[0]
    assert {"id", "lang"} <= set(document.metadata)
    assert not {"tenant", "published", "extra"} & set(document.metadata)


def test_a_degraded_answer_says_so(db, retriever):
    db.execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => '')")
    for name in ("gone", "never"):
        db.execute(
            "SELECT pgrerank.register_model(%s, 'cross_encoder', '/nowhere/' || %s)", (name, name)
        )
    db.execute("SELECT pgrerank.alter_reranker('documents', cross_encoder_model => 'gone')")
    best = asyncio.run(retriever.ainvoke("an exhausted pool"))[0]
    assert best.metadata["degraded"]
    assert "gone" in best.metadata["reason"]


@pytest.mark.anyio
class TestStandards(RetrieversIntegrationTests):
    """LangChain's own tests of a retriever, here by words alone, which wants no worker."""

    retriever_constructor = PgrerankRetriever
    retriever_query_example = "a cat, a pool, bread"

    @pytest.fixture(autouse=True)
    def words(self, db, dsn, source, monkeypatch):  # noqa: ARG002
        monkeypatch.setenv("DSN", dsn)
        db.execute("SELECT pgrerank.create_reranker('documents', 'documents', '{title,body}')")
        while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
            pass

    @property
    def retriever_constructor_params(self):
        return {"reranker": "documents", "connect": lambda: psycopg.connect(os.environ["DSN"])}


def compressor_of(retriever, **settings):
    return PgrerankCompressor(
        reranker="documents", connect=retriever.connect, aconnect=retriever.aconnect, **settings
    )


def test_a_compressor_reranks_what_another_retriever_found(db, retriever):
    made = [
        Document(id=i, page_content=i, metadata={"pk": int(i), "kept": True})
        for i in ("3", "2", "9")
    ]
    rows = db.execute(
        "SELECT id::text, score FROM pgrerank.documents_search('a sleeping cat', keys => '{3,2}')"
    ).fetchall()
    found = compressor_of(retriever).compress_documents(made, "a sleeping cat")
    assert [document.id for document in found] == [key for key, _ in rows]
    assert [d.metadata["score"] for d in found] == pytest.approx([s for _, s in rows], abs=1e-3)
    assert all(d.metadata["kept"] and d.metadata["relevance"] is None for d in found)
    assert "score" not in made[0].metadata
    by_pk = compressor_of(retriever, key="pk", top_n=1, arguments={"stages": ["dense", "maxsim"]})
    [best] = asyncio.run(by_pk.acompress_documents(made, "a sleeping cat"))
    assert best.id in "32"
    assert by_pk.compress_documents([], "x") == []
    with pytest.raises(ValueError, match=r"document 1 has no metadata 'pk'.*'documents'"):
        by_pk.compress_documents([made[0], Document("x")], "x")
    by_pk.connect = None
    with pytest.raises(ValueError, match="only aconnect is given"):
        by_pk.compress_documents(made, "x")


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
