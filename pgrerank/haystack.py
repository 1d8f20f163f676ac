"""Haystack: a retriever and a ranker as components, and its filters as those of a search."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import deserialize_callable, serialize_callable

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

__all__ = ["PgrerankRanker", "PgrerankRetriever", "search_filter"]


class _Component:
    """What both components hold; connections are named by their functions in a pipeline's YAML."""

    def to_dict(self) -> dict[str, Any]:
        """Serialise it; `connect` and `aconnect` must be functions that can be imported."""
        given = dict(vars(self))
        for name in ("connect", "aconnect"):
            given[name] = None if given[name] is None else serialize_callable(given[name])
        parameters = {name: value for name, value in given.items() if not name.startswith("_")}
        return default_to_dict(self, **parameters)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Make it of what `to_dict` made."""
        given = data["init_parameters"]
        for name in ("connect", "aconnect"):
            if given.get(name) is not None:
                given[name] = deserialize_callable(given[name])
        return default_from_dict(cls, data)


@component
class PgrerankRetriever(_Component):
    """Documents by pgrerank.NAME_search, best first.

    `connect` opens a psycopg connection for one search, such as a pool's `connection`, and
    `aconnect` an asynchronous one. A document's id is the key, its content what the reranker reads,
    or the columns `content`; its meta is what the search says and the other columns but those in
    `exclude`. `arguments` are further ones of NAME_search. Raises psycopg.Error.
    """

    def __init__(
        self,
        reranker: str,
        connect: Connect | None = None,
        aconnect: AsyncConnect | None = None,
        top_k: int = 10,
        content: Sequence[str] | None = None,
        exclude: Collection[str] = (),
        path: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.reranker, self.connect, self.aconnect = reranker, connect, aconnect
        self.top_k, self.content, self.exclude = top_k, content, list(exclude)
        self.path, self.arguments = path, dict(arguments or {})

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Search; `filters` are Haystack's, of columns, or with `path` of JSON in a column."""
        found = run(self.connect, self._steps(query, filters, top_k))
        return {"documents": _documents(found)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Search without blocking the event loop."""
        steps = self._steps(query, filters, top_k)
        return {"documents": _documents(await run_async(self.aconnect, self.connect, steps))}

    def _steps(
        self, query: str, filters: dict[str, Any] | None, top_k: int | None
    ) -> Steps[list[Found]]:
        asked = {"top_k": self.top_k, **self.arguments, "query": query}
        if top_k is not None:
            asked["top_k"] = top_k
        if filters:
            asked["filter"] = search_filter(filters, self.path)
        return retrieve(self.reranker, asked, self.content, self.exclude)


def _documents(found: Sequence[Found]) -> list[Document]:
    return [
        Document(id=one.key, content=one.text, meta=one.metadata, score=one.said["score"])
        for one in found
    ]


@component
class PgrerankRanker(_Component):
    """Reranks documents of any retriever that are in a reranker's source.

    A document's key is its `key` in the meta, as named here, or else its id. The best `top_k` come
    back with the last stage's score; those that the source does not have, or does not show to this
    role, are left out. `arguments` are further ones of NAME_search. Raises psycopg.Error.
    """

    def __init__(
        self,
        reranker: str,
        connect: Connect | None = None,
        aconnect: AsyncConnect | None = None,
        top_k: int = 10,
        key: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.reranker, self.connect, self.aconnect = reranker, connect, aconnect
        self.top_k, self.key, self.arguments = top_k, key, dict(arguments or {})

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Rerank documents for a query."""
        by_key = self._by_key(documents)
        ranked = run(self.connect, self._steps(query, by_key, top_k)) if by_key else []
        return {"documents": _ranked(by_key, ranked)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Rerank documents for a query, without blocking the event loop."""
        by_key = self._by_key(documents)
        steps = self._steps(query, by_key, top_k)
        ranked = await run_async(self.aconnect, self.connect, steps) if by_key else []
        return {"documents": _ranked(by_key, ranked)}

    def _by_key(self, documents: Sequence[Document]) -> dict[str, Document]:
        return {str(one.meta[self.key]) if self.key else one.id: one for one in documents}

    def _steps(self, query: str, keys: Collection[str], top_k: int | None) -> Steps[list[Ranked]]:
        asked = {"top_k": self.top_k, **self.arguments}
        if top_k is not None:
            asked["top_k"] = top_k
        return rerank(self.reranker, query, list(keys), asked)


def _ranked(by_key: Mapping[str, Document], ranked: Sequence[Ranked]) -> list[Document]:
    return [replace(by_key[one.key], score=one.score) for one in ranked]


def search_filter(filters: Mapping[str, Any], path: str | None = None) -> dict[str, Any]:
    """Make Haystack's filters the `filter` of a search.

    `meta.lang` is the column `lang`, or what is at `lang` in the column of JSON that `path` names.
    """
    if "field" not in filters:
        parts = [search_filter(one, path) for one in filters["conditions"]]
        word = filters["operator"].lower()
        return {"not": {"and": parts}} if word == "not" else {word: parts}
    field = filters["field"].removeprefix("meta.")
    name = field if path is None else f"{path}.{field}"
    operator = {"==": "="}.get(filters["operator"], filters["operator"])
    return {name: {operator: filters["value"]}}
