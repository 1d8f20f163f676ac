"""A LangChain retriever over a reranker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from psycopg import Connection, sql
from pydantic import Field

from pgrerank.catalog import call_statement, read_reranker

__all__ = ["PgrerankRetriever"]

_SEARCH = sql.SQL("""
SELECT h.key::text, concat_ws(E'\n', {content}), to_jsonb(d) - %(_left_out)s::text[]
  || jsonb_build_object('score', h.score, 'rank', h.rank, 'stage', h.stage, 'degraded', h.degraded)
FROM ({search}) h (key, score, rank, stage, degraded)
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
