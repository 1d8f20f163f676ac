from __future__ import annotations

import asyncio
import os
from typing import Any

import psycopg
import pytest

from tests.helpers.workers import wait_for, worker

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
pytest.importorskip("haystack")
from haystack import Document, Pipeline
from haystack.utils.filters import document_matches_filter

from pgrerank.haystack import PgrerankRanker, PgrerankRetriever, search_filter


def connect() -> psycopg.Connection[Any]:
    return psycopg.connect(os.environ["DSN"])


async def aconnect() -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(os.environ["DSN"])


@pytest.fixture
def ready(dsn, db, source, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setenv("DSN", dsn)
    source.models(**tiny_models)
    source.create()
    db.execute("UPDATE documents SET lang = CASE id WHEN 1 THEN 'de' ELSE 'en' END")
    with worker(dsn, tmp_path):
        wait_for(db, "s.pending = 0")
        yield db


def test_a_pipeline_retrieves_and_ranks_and_is_the_same_read_from_yaml(ready):
    asked = "an exhausted pool"
    pipeline = Pipeline()
    pipeline.add_component("retriever", PgrerankRetriever("documents", connect, aconnect, top_k=3))
    pipeline.add_component("ranker", PgrerankRanker("documents", connect, aconnect, top_k=2))
    pipeline.connect("retriever.documents", "ranker.documents")
    inputs = {"retriever": {"query": asked}, "ranker": {"query": asked}}
    trusted = ["pgrerank.haystack", __name__]
    pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=trusted)
    found = pipeline.run(inputs, include_outputs_from={"retriever"})
    rows = ready.execute(
        "SELECT id::text, title || E'\\n' || body, score FROM"
        " pgrerank.documents_search(%s, top_k => 3) JOIN documents USING (id) ORDER BY rank",
        (asked,),
    ).fetchall()
    retrieved = found["retriever"]["documents"]
    assert [(d.id, d.content) for d in retrieved] == [row[:2] for row in rows]
    assert [d.score for d in retrieved] == pytest.approx([row[2] for row in rows], abs=1e-3)
    assert retrieved[0].meta["stage"] == "cross_encoder"
    assert [d.id for d in found["ranker"]["documents"]] == [row[0] for row in rows[:2]]
    assert asyncio.run(pipeline.run_async(inputs))["ranker"] == found["ranker"]


def test_filters_arguments_and_keys_in_the_meta(ready):
    retriever = PgrerankRetriever("documents", connect, arguments={"stages": ["dense"]})
    german = {"field": "meta.lang", "operator": "==", "value": "de"}
    [document] = retriever.run("x", filters=german, top_k=5)["documents"]
    assert (document.id, document.meta["stage"]) == ("1", "dense")
    made = [Document(content="x", meta={"pk": key}) for key in (1, 2, 99)]
    ranker = PgrerankRanker(
        "documents", connect, key="pk", arguments={"signals": {"id": {"weight": 9}}}
    )
    assert [d.meta["pk"] for d in ranker.run("x", made)["documents"]] == [2, 1]
    assert len(asyncio.run(ranker.run_async("x", made, top_k=1))["documents"]) == 1
    assert ranker.run("x", [])["documents"] == []
    with pytest.raises(psycopg.errors.UndefinedObject, match='"typo" does not exist'):
        PgrerankRetriever("typo", connect).run("x")


METADATA = {1: {"year": 2019, "who": "a"}, 2: {"year": 2020, "who": "b"}, 3: {"who": "b"}}
YEARS = {
    operator: {"field": "meta.year", "operator": operator, "value": value}
    for operator, value in {
        **dict.fromkeys(("==", "!=", ">", ">=", "<", "<="), 2020),
        **{operator: [2020, 2021] for operator in ("in", "not in")},
    }.items()
}
WHO = {"field": "meta.who", "operator": "==", "value": "b"}


def test_filters_mean_what_they_mean_to_haystack(db):
    db.execute("CREATE TABLE notes (id int PRIMARY KEY, body text DEFAULT 'note', meta jsonb)")
    for key, metadata in METADATA.items():
        db.execute(
            "INSERT INTO notes (id, meta) VALUES (%s, %s)",
            (key, psycopg.types.json.Jsonb(metadata)),
        )
    db.execute("SELECT pgrerank.create_reranker('notes', 'notes', '{body}')")
    while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass
    joined = [
        {"operator": operator, "conditions": [YEARS[">="], WHO]}
        for operator in ("AND", "OR", "NOT")
    ]
    for asked in [*YEARS.values(), *joined]:
        rows = db.execute(
            "SELECT id FROM pgrerank.notes_search('note', filter => %s)",
            (psycopg.types.json.Jsonb(search_filter(asked, "meta")),),
        )
        expected = [
            key
            for key, metadata in METADATA.items()
            if document_matches_filter(asked, Document(content="note", meta=metadata))
        ]
        assert sorted(key for (key,) in rows) == expected, asked
