from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.helpers.workers import wait_for, worker

pytest.importorskip("langchain_core")
from langchain_core.runnables import RunnableLambda

from pgrerank.errors import InstallError
from pgrerank.langchain import PgrerankRetriever


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
