"""A LlamaIndex node postprocessor that reranks by a reranker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from psycopg import Connection, sql

from pgrerank.catalog import call_statement, read_reranker

__all__ = ["PgrerankPostprocessor"]

_SEARCH = sql.SQL("SELECT h.key::text, h.score FROM ({}) h (key, score, rank) ORDER BY h.rank")


class PgrerankPostprocessor(BaseNodePostprocessor):
    """Reranks nodes of any retriever whose ids are keys of a reranker's source.

    A node's key is its `key` in the metadata, as named here, or else its id. `connect` opens a
    psycopg connection for one call, such as a pool's `connection`. The best `top_n` come back with
    the last stage's score; nodes that the source does not have, or does not show to this role, are
    left out. Raises ValueError without a query, psycopg.Error for what the database refuses.
    """

    reranker: str
    connect: Callable[[], AbstractContextManager[Connection[Any]]] = Field(exclude=True, repr=False)
    key: str | None = None
    top_n: int = 10

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex serialises it by."""
        return "PgrerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError(f"reranker {self.reranker!r} wants a query: give query_str")
        if not nodes:
            return []
        by_key = {str(n.node.metadata[self.key]) if self.key else n.node.node_id: n for n in nodes}
        asked = {"query": query_bundle.query_str, "top_k": self.top_n, "keys": list(by_key)}
        with self.connect() as connection:
            reranker = read_reranker(connection, self.reranker)
            statement, values = call_statement(
                f"{reranker.name}_search", asked, casts={"keys": f"text[]::{reranker.key_type}[]"}
            )
            rows = connection.execute(_SEARCH.format(statement), values).fetchall()
        return [NodeWithScore(node=by_key[key].node, score=score) for key, score in rows]
