"""A LangChain retriever over a reranker, and structured queries as its filters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.structured_query import (
    Comparator,
    Comparison,
    Operation,
    Operator,
    StructuredQuery,
    Visitor,
)
from psycopg import Connection, sql
from pydantic import Field

from pgrerank.catalog import call_statement, read_reranker

__all__ = ["PgrerankRetriever", "PgrerankTranslator"]

_OPERATORS = {
    Comparator.EQ: "=",
    Comparator.NE: "!=",
    Comparator.GT: ">",
    Comparator.GTE: ">=",
    Comparator.LT: "<",
    Comparator.LTE: "<=",
    Comparator.LIKE: "like",
    Comparator.IN: "in",
    Comparator.NIN: "not in",
    Comparator.CONTAIN: "@>",
}

_SEARCH = sql.SQL("""
SELECT h.key::text, concat_ws(E'\n', {content}), to_jsonb(d) - %(_left_out)s::text[]
  || jsonb_build_object('score', h.score, 'rank', h.rank, 'stage', h.stage, 'degraded', h.degraded,
    'relevance', h.relevance)
FROM ({search}) h (key)
JOIN {source} d ON d.{key} = h.key ORDER BY h.rank""")


class PgrerankRetriever(BaseRetriever):
    """Documents by pgrerank.NAME_search, best first.

    `connect` opens a psycopg connection for one search, as a pool's `connection` does; it can set
    a tenant. A document's text is made of the columns `content`, its metadata of what the search
    says and of the other columns but those in `exclude`; its id is the key. `arguments` are further
    ones of NAME_search. Raises psycopg.Error.
    """

    reranker: str
    connect: Callable[[], AbstractContextManager[Connection[Any]]] = Field(exclude=True, repr=False)
    content: list[str]
    exclude: list[str] = Field(default_factory=list)
    k: int = 10
    arguments: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        given = {"query": query, "top_k": self.k} | self.arguments
        statement, values = call_statement(f"{self.reranker}_search", given)
        with self.connect() as connection:
            reranker = read_reranker(connection, self.reranker)
            search = _SEARCH.format(
                content=sql.SQL(", ").join(sql.Identifier("d", column) for column in self.content),
                search=statement,
                source=sql.SQL(reranker.table),
                key=sql.Identifier(reranker.key_column),
            )
            rows = connection.execute(search, values | {"_left_out": self.content + self.exclude})
            return [Document(id=i, page_content=text, metadata=said) for i, text, said in rows]


class PgrerankTranslator(Visitor):
    """Makes a structured query's filter one of NAME_search, as a self-query retriever wants it.

    `path` leads to the attributes, where they stand in a column of JSON: `meta` makes of `year`
    what is at `meta.year`. Without, they are columns of the source. "Contain" is what an array
    holds.
    """

    allowed_comparators = tuple(_OPERATORS)
    allowed_operators = tuple(Operator)

    def __init__(self, path: str | None = None) -> None:
        self._path = "" if path is None else f"{path}."

    def visit_operation(self, operation: Operation) -> dict[str, Any]:
        """Translate and, or, and not; several arguments of not are all to fail."""
        parts = [one.accept(self) for one in operation.arguments]
        if operation.operator == Operator.NOT:
            return {"not": {"or": parts}}
        return {operation.operator.value: parts}

    def visit_comparison(self, comparison: Comparison) -> dict[str, Any]:
        """Translate a comparison; a date is an object in the query language."""
        value = comparison.value
        if isinstance(value, dict) and "date" in value:
            value = value["date"]
        if comparison.comparator == Comparator.CONTAIN and not isinstance(value, list):
            value = [value]
        return {self._path + comparison.attribute: {_OPERATORS[comparison.comparator]: value}}

    def visit_structured_query(
        self, structured_query: StructuredQuery
    ) -> tuple[str, dict[str, Any]]:
        """Translate a query: its text, and the arguments `filter` and `top_k` as far as given."""
        arguments: dict[str, Any] = {}
        if structured_query.filter is not None:
            arguments["filter"] = structured_query.filter.accept(self)
        if structured_query.limit is not None:
            arguments["top_k"] = structured_query.limit
        return structured_query.query, arguments
