"""Searches for other frameworks: documents with texts and metadata, by either kind of connection.

What is asked is written once, as steps that yield statements and are sent their rows; `run` and
`run_async` take them to a connection.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from psycopg import AsyncConnection, Connection, sql
from psycopg.rows import dict_row

from pgrerank.catalog import Reranker, Steps, call_statement, reranker_steps, take

__all__ = ["AsyncConnect", "Connect", "Found", "Ranked", "rerank", "retrieve", "run", "run_async"]

T = TypeVar("T")

Connect = Callable[[], AbstractContextManager[Connection[Any]]]
"""Opens a connection for one search, as psycopg.connect and a pool's `connection` do."""

AsyncConnect = Callable[
    [],
    AbstractAsyncContextManager[AsyncConnection[Any]]
    | Awaitable[AbstractAsyncContextManager[AsyncConnection[Any]]],
]
"""Likewise AsyncConnection.connect, which is awaited, or an asynchronous pool's `connection`."""

_COLUMNS = """
SELECT attname::text AS name FROM pg_attribute
WHERE attrelid = %(source)s::regclass AND attnum > 0 AND NOT attisdropped
  AND attname <> ALL (%(left_out)s) AND has_column_privilege(attrelid, attnum, 'SELECT')
ORDER BY attnum"""

_SEARCH = sql.SQL("""
WITH found AS (SELECT {key}::text AS key, f.* FROM ({search}) f ({keys}))
SELECT f.key, {text} AS text, {columns} AS columns, jsonb_build_object(
    'score', f.score, 'rank', f.rank, 'stage', f.stage, 'degraded', f.degraded, 'reason', f.reason,
    'relevance', f.relevance, 'passage_start', f.passage_start, 'passage_end', f.passage_end)
    || jsonb_strip_nulls(jsonb_build_object('passages', f.passages, 'highlights', f.highlights))
    AS said
FROM found f JOIN {source} d ON {is_document} {texts} ORDER BY f.rank""")

_PASSAGE = "coalesce(f.passage, t.content, '')"

_TEXTS = sql.SQL(
    "LEFT JOIN pgrerank.texts({}, (SELECT array_agg(key) FROM found)) t ON t.key = f.key"
)

_RERANKED = sql.SQL(
    "SELECT {key}::text AS key, f.score, f.relevance FROM ({search}) f ({keys}) ORDER BY f.rank"
)


@dataclass(frozen=True)
class Found:
    """A document that was found: its key, its text, and its columns in the source.

    `said` has `score`, `rank`, `stage`, `degraded`, `reason`, `relevance`, `passage_start` and
    `passage_end` of the search, with `passages` and `highlights` where these were asked for.
    """

    key: str
    text: str
    columns: dict[str, Any]
    said: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """All of it, as frameworks take it."""
        return self.columns | self.said


@dataclass(frozen=True)
class Ranked:
    """A key in a new order, with the last stage's score and its relevance, where it is known."""

    key: str
    score: float | None
    relevance: float | None


def retrieve(
    reranker: str,
    arguments: Mapping[str, Any],
    content: Sequence[str] | None = None,
    exclude: Collection[str] = (),
) -> Steps[list[Found]]:
    """Search by a reranker with arguments of NAME_search, and read the documents, best first.

    Their texts are made of the columns `content`, or are the best passages of what the reranker
    reads, which are all of it where documents are short or `passages` is 0. The metadata has all
    other columns that the role may read, but those in `exclude` and the embedding.
    """
    described = yield from reranker_steps(reranker)
    settings = described.settings
    read = content if content is not None else settings["text_columns"] or []
    left_out = [*read, *exclude, settings["embedding_column"] or ""]
    columns = yield _COLUMNS, {"source": described.table, "left_out": left_out}
    search, values = _search(described, arguments)
    names = [sql.Identifier("d", column["name"]) for column in columns]
    statement = _SEARCH.format(
        search=search,
        text=sql.SQL(_PASSAGE) if content is None else _joined(content),
        texts=_TEXTS.format(described.name) if content is None else sql.SQL(""),
        columns=sql.SQL("(SELECT to_jsonb(m) FROM (SELECT {}) m)").format(
            sql.SQL(", ").join(names)
        ),
        source=sql.SQL(described.table),
        key=described.key_of_result("f"),
        keys=described.keys,
        is_document=described.is_document("d", "f"),
    )
    rows = yield statement, values
    return [Found(**row) for row in rows]


def rerank(
    reranker: str, query: str, keys: Sequence[str], arguments: Mapping[str, Any]
) -> Steps[list[Ranked]]:
    """Order documents of a reranker's source, that are given by their keys, best first.

    Those that the source does not have, or does not show to this role, are left out.
    """
    described = yield from reranker_steps(reranker)
    search, values = _search(described, {**arguments, "query": query, "keys": keys})
    statement = _RERANKED.format(
        search=search, key=described.key_of_result("f"), keys=described.keys
    )
    rows = yield statement, values
    return [Ranked(**row) for row in rows]


def _search(
    reranker: Reranker, arguments: Mapping[str, Any]
) -> tuple[sql.Composed, dict[str, Any]]:
    return call_statement(f"{reranker.name}_search", arguments, casts=reranker.casts)


def _joined(content: Sequence[str]) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier("d", column) for column in content)
    return sql.SQL("concat_ws(E'\\n', {})").format(columns)


def run(connect: Connect | None, steps: Steps[T]) -> T:
    """Take steps to a connection; raises psycopg.Error for what the database refuses."""
    if connect is None:
        raise ValueError("only aconnect is given: call the asynchronous method, or give connect")
    with connect() as connection:
        return take(connection, steps)


async def run_async(aconnect: AsyncConnect | None, connect: Connect | None, steps: Steps[T]) -> T:
    """As `run` does, without blocking the event loop: where there is no `aconnect`, in a thread."""
    if aconnect is None:
        return await asyncio.to_thread(run, connect, steps)
    opened = aconnect()
    if inspect.isawaitable(opened):
        opened = await opened
    async with opened as connection:
        cursor = connection.cursor(row_factory=dict_row)
        try:
            statement = next(steps)
            while True:
                await cursor.execute(*statement)
                statement = steps.send(await cursor.fetchall())
        except StopIteration as done:
            result: T = done.value
            return result
