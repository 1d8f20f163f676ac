"""A task's corpus in a table of its own, with a reranker over it, encoded."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg import sql

from pgrerank.catalog import call
from pgrerank.errors import EvaluationError
from pgrerank.install.schema import connect
from pgrerank.worker.backfill import backfill

Document = tuple[str, str | None, str]
"""Id, title, body."""

_LONGEST = 40
"""Characters that a reranker's name may have."""
_VERSION = (
    "SELECT obj_description(to_regclass(name), 'pg_class') FROM pgrerank.rerankers WHERE name = %s"
)


def table_name(prefix: str, task: str, *distinguishing: object) -> str:
    """A name for table and reranker, that is the same for the same arguments alone.

    Raises EvaluationError for a prefix that leaves no room or can't begin a name.
    """
    if not re.fullmatch("[a-z_][a-z0-9_]{0,19}", prefix):
        raise EvaluationError(
            f"table_prefix is {prefix!r}, expected up to 20 lower-case letters, digits and _, not a"
            " digit first"
        )
    digest = hashlib.sha256(repr((task, *distinguishing)).encode()).hexdigest()[:8]
    words = re.sub("[^a-z0-9]+", "_", task.lower()).strip("_")
    return f"{prefix}_{words[: _LONGEST - len(prefix) - len(digest) - 2]}_{digest}"


def version_of(documents: Iterable[Document]) -> str:
    """A digest of the documents, in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(repr(document).encode())
    return digest.hexdigest()


def is_loaded(connection: psycopg.Connection[Any], name: str, version: str) -> bool:
    """Whether reranker and table of that name are there, and hold just these documents."""
    return connection.execute(_VERSION, (name,)).fetchone() == (version,)


def load(
    connection: psycopg.Connection[Any],
    name: str,
    version: str,
    documents: Iterable[Document],
    settings: Mapping[str, Any],
) -> None:
    """Write the documents to a new table of that name, and create a reranker over it.

    What was there by that name goes. `settings` are arguments of `create_reranker`. All or nothing;
    raises psycopg.Error.
    """
    table = sql.Identifier(name)
    with connection.transaction():
        connection.execute(
            "SELECT pgrerank.drop_reranker(name) FROM pgrerank.rerankers WHERE name = %s", (name,)
        )
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
        connection.execute(
            sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, title text, body text)").format(table)
        )
        with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN").format(table)) as copy:
            for document in documents:
                copy.write_row(document)
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(version)))
        call(connection, "create_reranker", {"reranker": name, "source": name, **settings})


def encode(dsn: str, reranker: str, on_progress: Callable[[int, int], None]) -> None:
    """Encode in this process what the reranker lacks; `on_progress` takes done and total.

    Raises EvaluationError for documents that can't be encoded: measured without them, the reranker
    would look worse than it is.
    """
    _run(backfill(dsn, reranker, retry_failed=True, on_progress=on_progress))
    with connect(dsn) as connection:
        failed, error = connection.execute(
            "SELECT count(*), max(last_error) FROM pgrerank.pending"
            " WHERE reranker = %s AND failed_at IS NOT NULL",
            (reranker,),
        ).fetchone() or (0, None)
    if failed:
        raise EvaluationError(f"{reranker}: {failed} documents can't be encoded: {error}")


def _run(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine to its end, also where a loop runs already, as in notebooks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(coroutine)
    else:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(asyncio.run, coroutine).result()
