"""Makes a retrieval task of mteb from one's own judgements."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from pgrerank.catalog import read_reranker, read_texts
from pgrerank.errors import EvaluationError
from pgrerank.install.schema import connect
from pgrerank.judgements import load_set

if TYPE_CHECKING:
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData


class _OwnTask(AbsTaskRetrieval):
    """A task that has its data from the beginning, and fetches none."""

    def __init__(self, metadata: TaskMetadata, data: RetrievalSplitData) -> None:
        self.metadata = metadata
        super().__init__()
        self.dataset = {"default": {"test": data}}
        self.data_loaded = True

    def unload_data(self) -> None:
        """Keep the data: without it the task would look for it on a hub."""


def retrieval_task(
    database: psycopg.Connection[Any] | str,
    reranker: str,
    qrels_set: str,
    *,
    languages: Sequence[str] = ("eng-Latn",),
) -> AbsTaskRetrieval:
    """The documents of a reranker's table and a set of judgements of them, as a task.

    `database` is a connection or its string. Documents have the text that the reranker encodes, and
    are those that the connection may read; the set is one of `pgrerank qrels list`. The task's
    revision is a digest of all that, so that mteb takes results of former data for out of date.
    `languages` are codes such as `deu-Latn`.

    Raises EvaluationError for a reranker or set that is not there, and where there is no document.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(database, str):
            database = stack.enter_context(connect(database))
        documents = _read_documents(database, reranker)
        judgements = load_set(database, qrels_set)
    queries = sorted(judgements.queries.items())
    read = json.dumps([documents, queries, judgements.qrels], sort_keys=True).encode()
    metadata = _metadata(reranker, qrels_set, hashlib.sha256(read).hexdigest(), languages)
    data: RetrievalSplitData = {
        "corpus": _dataset(documents),
        "queries": _dataset(queries),
        "relevant_docs": judgements.qrels,
        "top_ranked": None,
    }
    return _OwnTask(metadata, data)


def _read_documents(connection: psycopg.Connection[Any], reranker: str) -> list[tuple[str, str]]:
    try:
        documents = sorted(read_texts(connection, reranker).items())
    except psycopg.errors.UndefinedObject as error:
        raise EvaluationError(f"there is no reranker {reranker!r}; see: pgrerank status") from error
    if not documents:
        table = read_reranker(connection, reranker).table
        raise EvaluationError(f"reranker {reranker!r}: its table {table} has no document to search")
    return documents


def _metadata(
    reranker: str, qrels_set: str, revision: str, languages: Sequence[str]
) -> TaskMetadata:
    return TaskMetadata(
        name=re.sub(r"[^\w.-]+", "_", f"{reranker}-{qrels_set}"),  # names the file of results
        description=f"The judgements {qrels_set} of the documents of reranker {reranker}.",
        dataset={"path": f"pgrerank/{reranker}", "revision": revision},
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=list(languages),
        main_score="ndcg_at_10",
        prompt=AbsTaskRetrieval.abstask_prompt,
        is_public=False,
    )


def _dataset(rows: Sequence[tuple[str, str]]) -> Dataset:
    return Dataset.from_dict({"id": [row[0] for row in rows], "text": [row[1] for row in rows]})
