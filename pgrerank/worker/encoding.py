"""Encodes texts in a lane: one forward pass for each checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.models import Encoder, ReadableTokens, Role
from pgrerank.models.reduction import Reduction
from pgrerank.worker.lanes import Lane


class Vectors(NamedTuple):
    """A text's vectors: embedding float32 [dims], tokens float32 [count, dims]; or None."""

    embedding: NDArray[np.float32] | Any
    tokens: NDArray[np.float32] | Any


async def encode_texts(
    lane: Lane,
    encoders: Mapping[str, Encoder],
    role: Role,
    texts: Sequence[str],
    reduction: Reduction,
    *,
    timeout: float = math.inf,
    urgent: bool = True,
) -> list[Vectors]:
    """Encode texts by the encoders of the kinds `embedding` and `late_interaction`.

    Returns a Vectors for each text, None for a kind without an encoder; token vectors are reduced.
    Texts of other callers that want the same share the forward passes. `timeout` is in seconds.
    Raises RequestError as lanes do, ModelError for what a model can't make.
    """
    embeddings: Sequence[Any] = [None] * len(texts)
    tokens: Sequence[Any] = embeddings
    for encoder in {id(encoder): encoder for encoder in encoders.values()}.values():
        wants_embeddings = encoders.get("embedding") is encoder
        wants_tokens = encoders.get("late_interaction") is encoder
        vectors = await lane.submit(
            (role, id(encoder), wants_embeddings, wants_tokens, reduction.kind),
            texts,
            partial(_encode, encoder, role, wants_embeddings, wants_tokens, reduction),
            timeout=timeout,
            urgent=urgent,
        )
        if wants_embeddings:
            embeddings = [one.embedding for one in vectors]
        if wants_tokens:
            tokens = [one.tokens for one in vectors]
    return [Vectors(*pair) for pair in zip(embeddings, tokens, strict=True)]


async def read_tokens(
    lane: Lane, encoder: Encoder, role: Role, texts: Sequence[str], *, timeout: float
) -> list[ReadableTokens]:
    """Encode texts to token vectors that say what they stand for; raises as `encode_texts` does."""
    return await lane.submit(
        ("readable", id(encoder), role),
        texts,
        partial(encoder.encode_readable, role=role),
        timeout=timeout,
    )


def _encode(
    encoder: Encoder,
    role: Role,
    embeddings: bool,
    tokens: bool,
    reduction: Reduction,
    texts: Sequence[str],
) -> list[Vectors]:
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
