from __future__ import annotations

import asyncio
import warnings

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.helpers.workers import wait_for, worker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, on import
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.core.vector_stores import FilterCondition, FilterOperator
    from llama_index.core.vector_stores import MetadataFilter as One
    from llama_index.core.vector_stores import MetadataFilters as Filters
    from llama_index.core.vector_stores.utils import build_metadata_filter_fn

    from pgrerank.llamaindex import PgrerankPostprocessor, PgrerankRetriever, search_filter


@pytest.fixture
def postprocessor(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create()
    with worker(dsn, tmp_path):
        wait_for(db, "s.pending = 0")
        yield PgrerankPostprocessor(
            reranker="documents",
            connect=lambda: psycopg.connect(dsn),
            aconnect=lambda: psycopg.AsyncConnection.connect(dsn),
            top_n=2,
        )


def nodes(*ids: str) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(id_=i, text=i, metadata={"pk": int(i)}), score=0) for i in ids
    ]


def test_nodes_are_reranked_and_cut(db, postprocessor):
    found = postprocessor.postprocess_nodes(nodes("3", "2", "99"), query_str="a sleeping cat")
    rows = db.execute(
        "SELECT id::text, score FROM pgrerank.documents_search('a sleeping cat', keys => '{3,2}')"
    ).fetchall()
    assert [node.node.node_id for node in found] == [key for key, _ in rows]
    assert [node.score for node in found] == pytest.approx([score for _, score in rows], abs=1e-3)


def test_keys_come_from_the_metadata_too_and_async(postprocessor):
    postprocessor.key = "pk"
    postprocessor.top_n = 1
    made = nodes("1", "2", "3")
    by_id = postprocessor.postprocess_nodes(made, query_str="x")
    assert asyncio.run(postprocessor.apostprocess_nodes(made, query_str="x")) == by_id
    assert len(by_id) == 1
    assert postprocessor.postprocess_nodes([], query_str="x") == []


def test_a_retriever_makes_nodes_of_documents(db, postprocessor):
    rows = db.execute(
        "SELECT id::text, title || E'\\n' || body, score"
        " FROM pgrerank.documents_search('an exhausted pool', top_k => 2) JOIN documents USING (id)"
        " ORDER BY rank"
    ).fetchall()
    retriever = PgrerankRetriever(
        "documents", postprocessor.connect, top_k=2, aconnect=postprocessor.aconnect
    )
    found = retriever.retrieve("an exhausted pool")
    assert [(n.node.node_id, n.node.text) for n in found] == [row[:2] for row in rows]
    assert [n.score for n in found] == pytest.approx([row[2] for row in rows], abs=1e-3)
    assert found[0].node.metadata["stage"] == "cross_encoder"
    assert asyncio.run(retriever.aretrieve("an exhausted pool")) == found
    without = PgrerankRetriever("documents", aconnect=postprocessor.aconnect)
    with pytest.raises(ValueError, match="only aconnect is given"):
        without.retrieve("x")


def test_searches_take_the_newer_arguments(db, postprocessor):
    db.execute("UPDATE documents SET lang = CASE id WHEN 1 THEN 'de' ELSE 'en' END")
    retriever = PgrerankRetriever("documents", postprocessor.connect, content=["title"])

    def found(**arguments):
        retriever.arguments = arguments
        return [node.node.node_id for node in retriever.retrieve("an exhausted pool")]

    assert found(signals={"id": {"weight": 100}}) == ["3", "2", "1"]
    assert len(found(group_by="lang")) == 2
    assert sorted(found(diversity=0.9)) == ["1", "2", "3"]
    first = found(top_k=2)
    assert found(after=first) == [key for key in "123" if key not in first]
    db.execute("UPDATE pgrerank.models SET takes_instruction = true WHERE name = 'reranker'")
    assert sorted(found(instruction="only cats")) == ["1", "2", "3"]
    postprocessor.arguments = {"signals": {"id": {"weight": 100}}}
    best = postprocessor.postprocess_nodes(nodes("1", "2", "3"), query_str="an exhausted pool")
    assert [node.node.node_id for node in best] == ["3", "2"]
    with pytest.raises(psycopg.Error, match="relevance"):
        found(min_relevance=0.5)


def test_what_can_t_be_is_named(postprocessor):
    assert "connect" not in postprocessor.to_json()
    with pytest.raises(ValueError, match="'documents' wants a query"):
        postprocessor.postprocess_nodes(nodes("1"))
    postprocessor.reranker = "typo"
    with pytest.raises(psycopg.errors.UndefinedObject, match='"typo" does not exist'):
        postprocessor.postprocess_nodes(nodes("1"), query_str="x")


METADATA = {
    1: {"year": 2019, "tags": ["a", "b"], "who": "Ann_1"},
    2: {"year": 2020, "tags": ["b"], "who": "ann%"},
    3: {"year": 2021, "tags": [], "who": "Bob"},
    4: {"tags": ["c"], "who": ""},
    5: {},
}
ONES = [
    One(key="year", value=2020),
    One(key="year", value=2020, operator=FilterOperator.NE),
    One(key="year", value=2020, operator=FilterOperator.GT),
    One(key="year", value=2020, operator=FilterOperator.GTE),
    One(key="year", value=2020, operator=FilterOperator.LT),
    One(key="year", value=2020, operator=FilterOperator.LTE),
    One(key="year", value=[2019, 2021], operator=FilterOperator.IN),
    One(key="year", value=[2019, 2021], operator=FilterOperator.NIN),
    One(key="tags", value="b", operator=FilterOperator.CONTAINS),
    One(key="tags", value=["a", "c"], operator=FilterOperator.ANY),
    One(key="tags", value=["a", "b"], operator=FilterOperator.ALL),
    One(key="tags", value=None, operator=FilterOperator.IS_EMPTY),
    One(key="who", value=None, operator=FilterOperator.IS_EMPTY),
    One(key="who", value="nn_", operator=FilterOperator.TEXT_MATCH),
    One(key="who", value="ANN%", operator=FilterOperator.TEXT_MATCH_INSENSITIVE),
]
ASKED = [Filters(filters=[one]) for one in ONES] + [
    Filters(filters=[ONES[3], ONES[8]], condition=condition) for condition in FilterCondition
]


def test_metadata_filters_mean_what_they_mean_to_llama_index(db, source):
    """As its own store in memory understands them."""
    db.execute("CREATE TABLE notes (id int PRIMARY KEY, body text DEFAULT 'note', meta jsonb)")
    for key, metadata in METADATA.items():
        db.execute("INSERT INTO notes (id, meta) VALUES (%s, %s)", (key, Jsonb(metadata)))
    db.execute("SELECT pgrerank.create_reranker('notes', 'notes', '{body}')")
    while db.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
        pass

    def found(filter_):
        rows = db.execute(
            "SELECT id FROM pgrerank.notes_search('note', filter => %s)", (Jsonb(filter_),)
        )
        return sorted(key for (key,) in rows)

    for asked in ASKED:
        matches = build_metadata_filter_fn(lambda key: METADATA[int(key)], asked)
        expected = [key for key in METADATA if matches(str(key))]
        assert found(search_filter(asked, "meta")) == expected, asked
    inner = Filters(filters=[ONES[0], ONES[8]], condition=FilterCondition.OR)
    nested = Filters(filters=[ONES[5], inner])
    assert found(search_filter(nested, "meta")) == [1, 2]
    assert found(search_filter(Filters(filters=[One(key="id", value=3)]))) == [3]
