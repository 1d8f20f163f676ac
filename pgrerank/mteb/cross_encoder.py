"""mteb's CrossEncoderProtocol: pairs as calls of pgrerank.cross_encode, one for each query."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from pgrerank.mteb.models import answering, model_meta
from pgrerank.mteb.texts import storable

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader

_SCORE = "SELECT pgrerank.cross_encode(%s, %s, %s, timeout => %s::interval)"


class PgrerankCrossEncoder:
    """Scores MTEB's pairs by a cross-encoder registered in the Postgres at `dsn`.

    The worker that the database knows scores them, or if it knows none one that runs as long as
    that takes. `timeout` is for all documents of one query. Raises EvaluationError for a model that
    is not registered, psycopg.Error for what the database or the worker refuses.
    """

    def __init__(self, dsn: str, model: str, *, timeout: str = "10 min") -> None:
        self._dsn, self._model, self._timeout = dsn, model, timeout
        self.mteb_model_meta = model_meta(dsn, {"cross_encoder": model})

    def predict(
        self,
        inputs1: DataLoader[BatchedInput],
        inputs2: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,  # noqa: ARG002
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,  # noqa: ARG002
        **_: Any,
    ) -> Array:
        """Scores of the pairs, in their order: float32, as many as there are pairs.

        Pairs of one query that follow one another, as mteb has them, make one call.
        """
        pairs = zip(_texts(inputs1), _texts(inputs2), strict=True)
        scores: list[float] = []
        with answering(self._dsn) as connection:
            for query, group in itertools.groupby(pairs, key=itemgetter(0)):
                documents = [document for _, document in group]
                call = (self._model, query, documents, self._timeout)
                [(answer,)] = connection.execute(_SCORE, call).fetchall()
                scores += answer
        return np.array(scores, np.float32)


def _texts(inputs: Any) -> Iterator[str]:
    for batch in inputs:
        yield from map(storable, batch["text"])
