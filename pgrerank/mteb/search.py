"""mteb's SearchProtocol: corpora as tables, queries as calls of NAME_search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from psycopg import sql

from pgrerank.catalog import call_statement
from pgrerank.errors import EvaluationError
from pgrerank.install.schema import connect
from pgrerank.mteb import corpus as tables
from pgrerank.mteb.models import answering, model_meta
from pgrerank.mteb.texts import query_text, storable
from pgrerank.terminal import work_progress

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import (
        CorpusDatasetType,
        EncodeKwargs,
        QueryDatasetType,
        RetrievalOutputType,
        TopRankedDocumentsType,
    )

_OF_A_CALL = ("candidates", "maxsim_top", "early_exit", "blend")
"""Arguments of each call. They, and the cross-encoder, which is altered, leave the stored vectors
as they are: a change of them must not encode a corpus again."""


_TOGETHER = 10
"""Queries of one call: few, that progress is seen where a cross-encoder reads."""


class PgrerankSearch:
    """Searches MTEB's retrieval and reranking tasks by a reranker in the Postgres at `dsn`.

    The models are registered ones, by name; `stages` are as in NAME_search, `settings` further
    arguments of `create_reranker`. Each task's corpus becomes a table of its own, whose name begins
    with `table_prefix`, encoded in this process; another run over the same corpus with the same
    settings finds it there. Queries are answered by the worker that the database knows, or if it
    knows none by one that runs as long as they do.

    A call brings as many documents as the reranker recalls (`candidates`, 100 unless set), as in an
    application, though MTEB takes up to 1000: recall_at_1000 is then that of 100. Where a task
    brings its candidates (`top_ranked`), those are reranked, and nothing is recalled. Prompts are
    those which the models were registered with; a query's instruction stands after its text.

    Raises EvaluationError for what can't be, psycopg.Error for what the database refuses: a stage
    that is lost ends the evaluation, as its measures would be those of another search.
    """

    def __init__(
        self,
        dsn: str,
        *,
        embedding_model: str,
        late_interaction_model: str | None = None,
        cross_encoder_model: str | None = None,
        stages: Sequence[str] | None = None,
        table_prefix: str = "mteb",
        timeout: str = "10 min",
        **settings: Any,
    ) -> None:
        self._dsn = dsn
        self._prefix = table_prefix
        self._cross_encoder = cross_encoder_model or ""
        self._call = {key: settings.pop(key) for key in _OF_A_CALL if key in settings}
        self._settings = {
            "text_columns": ["title", "body"],
            "embedding_model": embedding_model,
            "late_interaction_model": late_interaction_model,
            **settings,
        }
        if stages is not None:
            self._call["stages"] = list(stages)
        self.mteb_model_meta = model_meta(
            dsn,
            {
                "embedding": embedding_model,
                "late_interaction": late_interaction_model,
                "cross_encoder": cross_encoder_model,
            },
            self._call | settings,
        )
        self._call |= {"timeout": timeout, "strict": True}

    def index(
        self,
        corpus: CorpusDatasetType,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: EncodeKwargs,
        num_proc: int | None = None,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Load the corpus into a table, create a reranker over it, and encode it."""
        name = self._reranker(task_metadata, hf_split, hf_subset)
        version = tables.version_of(_documents(corpus))
        with connect(self._dsn) as connection:
            if not tables.is_loaded(connection, name, version):
                tables.load(connection, name, version, _documents(corpus), self._settings)
            connection.execute(
                "SELECT pgrerank.alter_reranker(%s, cross_encoder_model => %s)",
                (name, self._cross_encoder),
            )
        with _progress("encoding", "documents", encode_kwargs) as progress:
            tables.encode(self._dsn, name, progress)

    def search(
        self,
        queries: QueryDatasetType,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: EncodeKwargs,
        top_ranked: TopRankedDocumentsType | None = None,
        num_proc: int | None = None,  # noqa: ARG002
        **_: Any,
    ) -> RetrievalOutputType:
        """Scores by query id and document id, see :func:`ordered`.

        One SQL call for each ten queries, or for each where the task brings its candidates.
        """
        name = self._reranker(task_metadata, hf_split, hf_subset)
        scores_by_query: RetrievalOutputType = {}
        with (
            answering(self._dsn) as connection,
            _progress("asking", "queries", encode_kwargs) as progress,
        ):
            depth = self._depth(connection, name, top_k)
            texts = {row["id"]: query_text(row) for row in queries}
            for ids in _parts(list(texts), _TOGETHER if top_ranked is None else 1):
                if top_ranked is None:
                    call = {"queries": [texts[one] for one in ids], "top_k": depth}
                    found = _ask_many(connection, name, self._call | call)
                else:
                    keys = list(top_ranked.get(ids[0], []))
                    call = {"query": texts[ids[0]], "keys": keys, "top_k": top_k}
                    found = [_ask(connection, name, self._call | call)]
                scores_by_query |= zip(ids, map(ordered, found), strict=True)
                progress(len(scores_by_query), len(texts))
        return scores_by_query

    def _reranker(self, task: TaskMetadata, split: str, subset: str) -> str:
        settings = sorted(self._settings.items())
        return tables.table_name(self._prefix, task.name, subset, split, settings)

    def _depth(self, connection: psycopg.Connection[Any], name: str, top_k: int) -> int:
        row = connection.execute(
            "SELECT candidates FROM pgrerank.rerankers WHERE name = %s", (name,)
        ).fetchone()
        if row is None:
            raise EvaluationError(f"{name}: there is no such reranker: call index before search")
        return min(top_k, int(self._call.get("candidates", row[0])))


def ordered(rows: Iterable[tuple[str, float | None, str]]) -> dict[str, float]:
    """Scores that order documents as their ranks do, from key, score and stage, best first.

    mteb orders by score alone. But the documents below a stage's head have scores of the stage
    before, on another scale, which may be higher, and equal scores are ordered by id there. So the
    scores of the first stage stay, those of a later one are moved to lie below, and each is less
    than the one before. Given candidates that no stage has scored go by their places. All are of 32
    bits, as trec_eval reads them.
    """
    scores: dict[str, float] = {}
    least, last, moved = np.float32(np.inf), "", np.float32(0)
    for place, (key, given, stage) in enumerate(rows):
        score = np.float32(-place if given is None else given)
        if stage != last:
            last, moved = stage, min(np.float32(0), least - score)
        least = min(score + moved, np.nextafter(least, np.float32(-np.inf)))
        scores[key] = float(least)
    return scores


def _parts(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _ask_many(
    connection: psycopg.Connection[Any], reranker: str, call: Mapping[str, Any]
) -> list[list[tuple[str, float | None, str]]]:
    statement, values = call_statement(
        f"{reranker}_search_many", call, select="query_number, id, score, stage"
    )
    found: list[list[tuple[str, float | None, str]]] = [[] for _ in call["queries"]]
    ordering = sql.SQL(" ORDER BY query_number, rank")
    for number, *row in connection.execute(statement + ordering, values).fetchall():
        found[number - 1].append((row[0], row[1], row[2]))
    return found


def _ask(
    connection: psycopg.Connection[Any], reranker: str, call: Mapping[str, Any]
) -> list[tuple[str, float | None, str]]:
    statement, values = call_statement(f"{reranker}_search", call, select="id, score, stage")
    return connection.execute(statement + sql.SQL(" ORDER BY rank"), values).fetchall()


def _documents(corpus: CorpusDatasetType) -> Iterator[tables.Document]:
    for row in corpus:
        yield row["id"], storable(row.get("title") or "") or None, storable(row["text"])


def _progress(
    title: str, things: str, encode_kwargs: EncodeKwargs
) -> contextlib.AbstractContextManager[Any]:
    if encode_kwargs.get("show_progress_bar", True):
        return work_progress(title, things)
    return contextlib.nullcontext(lambda _done, _total: None)
