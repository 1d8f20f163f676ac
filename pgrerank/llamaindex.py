"""A LlamaIndex node postprocessor that reranks by a reranker, and metadata filters for searches."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from psycopg import Connection, sql

from pgrerank.catalog import call_statement, read_reranker

__all__ = ["PgrerankPostprocessor", "search_filter"]

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

_SEARCH = sql.SQL("SELECT h.key::text, h.score FROM ({}) h (key) ORDER BY h.rank")


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
