from __future__ import annotations

import asyncio
import warnings

import psycopg
import pytest

from tests.helpers.workers import wait_for, worker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, on import
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    from pgrerank.llamaindex import PgrerankPostprocessor


@pytest.fixture
def postprocessor(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create()
    with worker(dsn, tmp_path):
        wait_for(db, "s.pending = 0")
        yield PgrerankPostprocessor(
            reranker="documents", connect=lambda: psycopg.connect(dsn), top_n=2
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


def test_what_can_t_be_is_named(postprocessor):
    assert "connect" not in postprocessor.to_json()
    with pytest.raises(ValueError, match="'documents' wants a query"):
        postprocessor.postprocess_nodes(nodes("1"))
    postprocessor.reranker = "typo"
    with pytest.raises(psycopg.errors.UndefinedObject, match='"typo" does not exist'):
        postprocessor.postprocess_nodes(nodes("1"), query_str="x")
