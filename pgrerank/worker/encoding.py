"""A text's vectors, one text at a time, as lanes want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.models import Encoder
from pgrerank.models.reduction import Reduction


class Vectors(NamedTuple):
    """What a text became: embedding float32 [dims], tokens float32 [count, dims]; or None."""

    embedding: NDArray[np.float32] | Any
    tokens: NDArray[np.float32] | Any


def encode(
    encoder: Encoder,
    role: Literal["query", "document"],
    embeddings: bool,
    tokens: bool,
    reduction: Reduction,
    texts: Sequence[str],
) -> list[Vectors]:
    """Encode texts in one forward pass and reduce their token vectors; a Vectors for each text."""
    encoded = encoder.encode(texts, role=role, embeddings=embeddings, tokens=tokens)
    nothing = [None] * len(texts)
    return [
        Vectors(embedding, None if matrix is None else reduction.apply(matrix, role))
        for embedding, matrix in zip(
            nothing if encoded.embeddings is None else encoded.embeddings,
            nothing if encoded.tokens is None else encoded.tokens,
            strict=True,
        )
    ]
