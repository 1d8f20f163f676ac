"""Which document token best matches each query token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgrerank.models import Encoder, ReadableTokens, Role
from pgrerank.models.steps import Whole
from pgrerank.worker.engine import Engine

_CHUNK_ELEMENTS = 1 << 20  # 4 MB of float32, for a query or a document of any length
_DIGITS = 4


async def align(
    encoder: Encoder,
    query: str,
    documents: Sequence[str],
    engine: Engine,
    timeout: float,
) -> dict[str, Any]:
    """Answer `align`: the query's tokens, and for each document an `alignment` with them.

    The vectors are the model's own, in full precision: stored ones may be rounded, pooled or
    projected, and then no longer stand for one token. `timeout` is in seconds. Raises RequestError
    as the engine does, ModelError for a model that can't say what its vectors stand for.
    """
    deadline = time.monotonic() + timeout

    async def read(texts: Sequence[str], role: Role) -> list[ReadableTokens]:
        steps = encoder.steps(role, embeddings=False, tokens=True, readable=True)
        return await engine.submit("encode", steps, texts, timeout=deadline - time.monotonic())

    [query_tokens] = await read([query], "query")
    pairs = [(query_tokens, document) for document in await read(documents, "document")]
    answers = await engine.submit("maxsim", _ALIGN, pairs, timeout=deadline - time.monotonic())
    return {"query": query_tokens.texts, "documents": answers}


def alignment(query: ReadableTokens, document: ReadableTokens) -> dict[str, Any]:
    """The best matches in both directions, by inner products rounded to 4 decimals.

    `tokens` and `spans` are the document's, `heat` the largest product of each with any token of
    the query and `heat_from` that one's index; `best` and `scores` are for each token of the query
    the index of the document's token of the largest product, and the product. The sum of `scores`
    is the document's MaxSim. All are empty where query or document has no tokens.
    """
    if not (query.texts and document.texts):
        return {name: [] for name in ("tokens", "spans", "best", "scores", "heat", "heat_from")}
    best, scores, heat, heat_from = _maxima(query.vectors, document.vectors)
    return {
        "tokens": document.texts,
        "spans": document.spans,
        "best": best.tolist(),
        "scores": _rounded(scores),
        "heat": _rounded(heat),
        "heat_from": heat_from.tolist(),
    }


_ALIGN = Whole(
    lambda pairs: [alignment(*pair) for pair in pairs], size=lambda pair: len(pair[1].texts)
)


def _maxima(
    query: NDArray[np.float32], document: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Give place and size of the maxima of ``document @ query.T`` in each column and each row."""
    best, scores = np.zeros(len(query), int), np.full(len(query), -np.inf)
    heat, heat_from = np.empty(len(document)), np.empty(len(document), int)
    rows = max(1, _CHUNK_ELEMENTS // len(query))
    for begin in range(0, len(document), rows):
        products = document[begin : begin + rows] @ query.T
        here = products.max(axis=0)
        better = here > scores
        best[better], scores[better] = begin + products.argmax(axis=0)[better], here[better]
        heat[begin : begin + rows] = products.max(axis=1)
        heat_from[begin : begin + rows] = products.argmax(axis=1)
    return best, scores, heat, heat_from


def _rounded(values: NDArray[Any]) -> list[float]:
    return [round(value, _DIGITS) for value in values.tolist()]
