"""LlamaIndex: a retriever and a node postprocessor, and metadata filters for searches."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from pgrerank.catalog import Steps
from pgrerank.retrieval import (
    AsyncConnect,
    Connect,
    Found,
    Ranked,
    rerank,
    retrieve,
    run,
    run_async,
)

__all__ = ["PgrerankPostprocessor", "PgrerankRetriever", "search_filter"]

_OPERATORS = {
    FilterOperator.EQ: "=",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "not in",
    FilterOperator.ANY: "&&",
    FilterOperator.ALL: "@>",
}
_WORDS = {FilterOperator.TEXT_MATCH: "like", FilterOperator.TEXT_MATCH_INSENSITIVE: "ilike"}


class PgrerankRetriever(BaseRetriever):
    """Nodes by pgrerank.NAME_search, best first.

    `connect` opens a psycopg connection for one search, such as a pool's `connection`, and
    `aconnect` an asynchronous one. A node's id is the key,
    its text what the reranker reads, or the columns `content`; its metadata is what the search says
    and the other columns but those in `exclude`. `arguments` are further ones of NAME_search.
    """

    def __init__(
        self,
        reranker: str,
        connect: Connect | None = None,
        *,
        aconnect: AsyncConnect | None = None,
        top_k: int = 10,
        content: Sequence[str] | None = None,
        exclude: Collection[str] = (),
        arguments: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.reranker, self.top_k = reranker, top_k
        self.content, self.exclude = content, exclude
        self.arguments = dict(arguments or {})
        self._connect, self._aconnect = connect, aconnect

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(run(self._connect, self._steps(query_bundle)))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        steps = self._steps(query_bundle)
        return _nodes(await run_async(self._aconnect, self._connect, steps))

    def _steps(self, asked: QueryBundle) -> Steps[list[Found]]:
        arguments = {"top_k": self.top_k, **self.arguments, "query": asked.query_str}
        return retrieve(self.reranker, arguments, self.content, self.exclude)


def _nodes(found: Sequence[Found]) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(id_=one.key, text=one.text, metadata=one.metadata),
            score=one.said["score"],
        )
        for one in found
    ]


class PgrerankPostprocessor(BaseNodePostprocessor):
    """Reranks nodes of any retriever whose ids are keys of a reranker's source.

    A node's key is its `key` in the metadata, as named here, or else its id. `connect` opens a
    psycopg connection for one call, such as a pool's `connection`, and `aconnect` an asynchronous
    one. The best `top_n` come back with the last stage's score; nodes that the source does not
    have, or does not show to this role, are left out. `arguments` are further ones of NAME_search.
    Raises ValueError without a query, psycopg.Error for what the database refuses.
    """

    reranker: str
    connect: Connect | None = Field(default=None, exclude=True, repr=False)
    aconnect: AsyncConnect | None = Field(default=None, exclude=True, repr=False)
    key: str | None = None
    top_n: int = 10
    arguments: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex serialises it by."""
        return "PgrerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        by_key = self._by_key(nodes)
        steps = self._steps(by_key, query_bundle)
        return _ranked(by_key, run(self.connect, steps)) if by_key else []

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        by_key = self._by_key(nodes)
        steps = self._steps(by_key, query_bundle)
        if not by_key:
            return []
        return _ranked(by_key, await run_async(self.aconnect, self.connect, steps))

    def _by_key(self, nodes: Sequence[NodeWithScore]) -> dict[str, NodeWithScore]:
        return {str(n.node.metadata[self.key]) if self.key else n.node.node_id: n for n in nodes}

    def _steps(self, keys: Collection[str], asked: QueryBundle | None) -> Steps[list[Ranked]]:
        if asked is None:
            raise ValueError(f"reranker {self.reranker!r} wants a query: give query_str")
        arguments = {"top_k": self.top_n, **self.arguments}
        return rerank(self.reranker, asked.query_str, list(keys), arguments)


def _ranked(by_key: Mapping[str, NodeWithScore], ranked: Sequence[Ranked]) -> list[NodeWithScore]:
    return [NodeWithScore(node=by_key[one.key].node, score=one.score) for one in ranked]


def search_filter(filters: MetadataFilters, path: str | None = None) -> dict[str, Any]:
    """Make metadata filters the `filter` of a search.

    `path` leads to the metadata, where it stands in a column of JSON: `meta` makes of `year` what
    is at `meta.year`. Without, keys are columns of the source, of which NULL is empty. Text matches
    are looked for anywhere in the text; `not` is for what none of the filters match.
    """
    parts = [
        search_filter(one, path) if isinstance(one, MetadataFilters) else _condition(one, path)
        for one in filters.filters
    ]
    condition = "and" if filters.condition is None else filters.condition.value
    return {"not": {"or": parts}} if condition == "not" else {condition: parts}


def _condition(one: MetadataFilter, path: str | None) -> dict[str, Any]:
    name = one.key if path is None else f"{path}.{one.key}"
    if one.operator == FilterOperator.IS_EMPTY:
        return {name: None} if path is None else {"or": [{name: [None, ""]}, {name: {"=": []}}]}
    if one.operator == FilterOperator.CONTAINS:
        return {name: {"@>": [one.value]}}
    if one.operator in _WORDS:
        escaped = re.sub(r"([\\%_])", r"\\\1", str(one.value))
        return {name: {_WORDS[one.operator]: f"%{escaped}%"}}
    return {name: {_OPERATORS[one.operator]: one.value}}
