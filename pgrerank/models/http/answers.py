"""The shapes of answers, and what must hold of them before anything is believed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

V = TypeVar("V")
Numbers = list[float]
LARGEST = 3e38
"""Below which a number is one of type real."""


class AnswerError(ValueError):
    """An answer that can't be used; the message says what is wrong with it."""


class Answer(Protocol):
    """A decoded answer: a value for each text, with the text's place in the request."""

    def placed(self) -> Iterable[tuple[int, Any]]:
        """The places and values, in any order."""
        ...


class _Rank(msgspec.Struct):
    index: int
    score: float


class Ranks(msgspec.Struct):
    """TEI's answer to /rerank."""

    ranks: list[_Rank]

    def placed(self) -> Iterable[tuple[int, float]]:
        """See :class:`Answer`."""
        return ((one.index, one.score) for one in self.ranks)


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class Results(msgspec.Struct):
    """Cohere's, Jina's and vLLM's answer to /rerank."""

    results: list[_Result]

    def placed(self) -> Iterable[tuple[int, float]]:
        """See :class:`Answer`."""
        return ((one.index, one.relevance_score) for one in self.results)


class Data(msgspec.Struct):
    """Voyage's answer to /rerank."""

    data: list[_Result]

    def placed(self) -> Iterable[tuple[int, float]]:
        """See :class:`Answer`."""
        return ((one.index, one.relevance_score) for one in self.data)


class _Embedding(msgspec.Struct):
    index: int
    embedding: Numbers


class Embeddings(msgspec.Struct):
    """OpenAI's answer to /embeddings, and that of all who follow it."""

    data: list[_Embedding]

    def placed(self) -> Iterable[tuple[int, Numbers]]:
        """See :class:`Answer`."""
        return ((one.index, one.embedding) for one in self.data)


class Rows(msgspec.Struct):
    """TEI's answer to /embed."""

    rows: list[Numbers]

    def placed(self) -> Iterable[tuple[int, Numbers]]:
        """See :class:`Answer`."""
        return enumerate(self.rows)


class _Floats(msgspec.Struct):
    float: list[Numbers]


class ByType(msgspec.Struct):
    """Cohere's answer to /embed."""

    embeddings: _Floats

    def placed(self) -> Iterable[tuple[int, Numbers]]:
        """See :class:`Answer`."""
        return enumerate(self.embeddings.float)


class _MultiVector(msgspec.Struct):
    index: int
    embeddings: list[Numbers]


class MultiVectors(msgspec.Struct):
    """Jina's answer to /multi-vector."""

    data: list[_MultiVector]

    def placed(self) -> Iterable[tuple[int, list[Numbers]]]:
        """See :class:`Answer`."""
        return ((one.index, one.embeddings) for one in self.data)


class _Pooled(msgspec.Struct):
    index: int
    data: list[Numbers]


class Pooled(msgspec.Struct):
    """vLLM's answer to /pooling for the task token_embed."""

    data: list[_Pooled]

    def placed(self) -> Iterable[tuple[int, list[Numbers]]]:
        """See :class:`Answer`."""
        return ((one.index, one.data) for one in self.data)


def decode(body: bytes, shape: type[Any], count: int) -> list[Any]:
    """The values for `count` texts in their order; raises AnswerError where any is missing.

    A shape with one field that is a list at the top of an answer is given without its name.
    """
    try:
        if shape in (Ranks, Rows):
            [field] = msgspec.structs.fields(shape)
            found = shape(msgspec.json.decode(body, type=field.type))
        else:
            found = msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise AnswerError(f"no such JSON as expected: {error}") from error
    return in_order(found.placed(), count)


def in_order(placed: Iterable[tuple[int, V]], count: int) -> list[V]:
    """Values by their places 0 to count - 1, each of which must occur once."""
    found: dict[int, V] = {}
    for place, value in placed:
        if not 0 <= place < count:
            raise AnswerError(f"index {place}, of {count} texts that were sent")
        if place in found:
            raise AnswerError(f"index {place} twice")
        found[place] = value
    if len(found) != count:
        raise AnswerError(f"{len(found)} results for {count} texts")
    return [found[place] for place in range(count)]


def log_odds(probabilities: Sequence[float]) -> list[float]:
    """Log-odds of probabilities: what a model's logit was, before it was squeezed to 0 to 1."""
    odd = [one for one in probabilities if not 0 <= one <= 1]
    if odd:
        raise AnswerError(f'a score of {odd[0]}, expected 0 to 1: see the option "scores"')
    kept = [min(max(one, 1e-9), 1 - 1e-9) for one in probabilities]
    return [math.log(one / (1 - one)) for one in kept]


def finite(scores: Sequence[float]) -> list[float]:
    """The scores; raises AnswerError where one is too large to be stored."""
    odd = [one for one in scores if not abs(one) < LARGEST]
    if odd:
        raise AnswerError(f"a score of {odd[0]}")
    return list(scores)


def unit_vectors(rows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Vectors of length 1, float32 of shape [rows, dims].

    Raises AnswerError for rows of different lengths, or ones that have no direction.
    """
    if len({len(row) for row in rows}) > 1 or not all(rows):
        raise AnswerError("vectors of different dimensions, or of none")
    vectors = np.array(rows, np.float64)
    if not (np.abs(vectors) < LARGEST).all():
        raise AnswerError("a vector that is too large")
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not lengths.all():
        raise AnswerError("a vector of zeros")
    made: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return made
