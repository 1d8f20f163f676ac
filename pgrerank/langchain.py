"""LangChain: a retriever and a document compressor, and structured queries as filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.structured_query import (
    Comparator,
    Comparison,
    Operation,
    Operator,
    StructuredQuery,
    Visitor,
)
from pydantic import BaseModel, Field

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

__all__ = ["PgrerankCompressor", "PgrerankRetriever", "PgrerankTranslator"]

T = TypeVar("T")

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


class _Connected(BaseModel):
    """How a retriever or compressor reaches the database; what is given to it stays secret."""

    reranker: str
    connect: Connect | None = Field(default=None, exclude=True, repr=False)
    aconnect: AsyncConnect | None = Field(default=None, exclude=True, repr=False)
    arguments: dict[str, Any] = Field(default_factory=dict)

    def _run(self, steps: Steps[T]) -> T:
        return run(self.connect, steps)

    async def _arun(self, steps: Steps[T]) -> T:
        return await run_async(self.aconnect, self.connect, steps)


class PgrerankRetriever(_Connected, BaseRetriever):
    """Documents by pgrerank.NAME_search, best first.

    `connect` opens a psycopg connection for one search, as a pool's `connection` does, and
    `aconnect` an asynchronous one; either can set a tenant. A document's text is what the reranker
    reads, or the columns `content`; its metadata is what the search says and the other columns but
    those in `exclude`; its id is the key. `arguments` are further ones of NAME_search, and so are
    those of a call: `invoke(query, k=3, filter={"lang": "en"})`. Raises psycopg.Error.
    """

    content: list[str] | None = None
    exclude: list[str] = Field(default_factory=list)
    k: int = 10

    def _get_relevant_documents(self, query: str, **arguments: Any) -> list[Document]:
        return _documents(self._run(self._steps(query, arguments)))

    async def _aget_relevant_documents(self, query: str, **arguments: Any) -> list[Document]:
        return _documents(await self._arun(self._steps(query, arguments)))

    def _steps(self, query: str, arguments: dict[str, Any]) -> Steps[list[Found]]:
        asked = {"top_k": arguments.pop("k", self.k), **self.arguments, **arguments, "query": query}
        return retrieve(self.reranker, asked, self.content, self.exclude)


def _documents(found: Sequence[Found]) -> list[Document]:
    return [Document(id=f.key, page_content=f.text, metadata=f.metadata) for f in found]


class PgrerankCompressor(_Connected, BaseDocumentCompressor):
    """Reranks the documents of any retriever that are in a reranker's source.

    A document's key is its `key` in the metadata, as named here, or else its id. The best `top_n`
    come back, with `score` and `relevance` in their metadata; those that the source does not have,
    or does not show to this role, are left out. Raises ValueError for a document without a key,
    psycopg.Error for what the database refuses.
    """

    key: str | None = None
    top_n: int = 10

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """Rerank documents for a query."""
        by_key = self._by_key(documents)
        return _ranked(by_key, self._run(self._steps(query, by_key))) if by_key else []

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks = None
    ) -> list[Document]:
        """Rerank documents for a query, without blocking the event loop where `aconnect` is set."""
        by_key = self._by_key(documents)
        return _ranked(by_key, await self._arun(self._steps(query, by_key))) if by_key else []

    def _by_key(self, documents: Sequence[Document]) -> dict[str, Document]:
        keys = [one.metadata.get(self.key) if self.key else one.id for one in documents]
        if None in keys:
            wanted = "id" if self.key is None else f"metadata {self.key!r}"
            raise ValueError(
                f"document {keys.index(None)} has no {wanted}: the compressor of reranker"
                f" {self.reranker!r} finds documents by their keys, in the metadata by key=…"
            )
        return {str(key): one for key, one in zip(keys, documents, strict=True)}

    def _steps(self, query: str, by_key: Mapping[str, Document]) -> Steps[list[Ranked]]:
        return rerank(self.reranker, query, list(by_key), {"top_k": self.top_n, **self.arguments})


def _ranked(by_key: Mapping[str, Document], ranked: Sequence[Ranked]) -> list[Document]:
    return [
        by_key[one.key].model_copy(
            update={
                "metadata": by_key[one.key].metadata
                | {"score": one.score, "relevance": one.relevance}
            }
        )
        for one in ranked
    ]


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
