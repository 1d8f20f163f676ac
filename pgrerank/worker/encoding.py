"""Encodes texts by the engine: one forward pass for each checkpoint."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pgrerank.models import Encoder, Role
from pgrerank.models.reduction import Reduction
from pgrerank.models.spec import Vectors
from pgrerank.worker.engine import Engine


async def encode_texts(
    engine: Engine,
    lane: str,
    encoders: Mapping[str, Encoder],
    role: Role,
    texts: Sequence[str],
    reduction: Reduction,
    *,
    instruction: str | None = None,
    timeout: float = math.inf,
) -> list[Vectors]:
    """Encode texts by the encoders of the kinds `embedding` and `late_interaction`, those of which
    that take an instruction are given it.

    Returns a Vectors for each text, None for a kind without an encoder; token vectors are reduced.
    Texts of other callers that want the same share the forward passes. `timeout` is in seconds.
    Raises RequestError as the engine does, ModelError for what a model can't make.
    """
    embeddings: Sequence[Any] = [None] * len(texts)
    tokens: Sequence[Any] = embeddings
    for encoder in {id(encoder): encoder for encoder in encoders.values()}.values():
        wants_embeddings = encoders.get("embedding") is encoder
        wants_tokens = encoders.get("late_interaction") is encoder
        steps = encoder.steps(
            role,
            embeddings=wants_embeddings,
            tokens=wants_tokens,
            instruction=instruction if encoder.takes_instruction else None,
        )
        vectors = await engine.submit(lane, steps, texts, timeout=timeout)
        if wants_embeddings:
            embeddings = [one.embedding for one in vectors]
        if wants_tokens:
            found = [one.tokens for one in vectors]
            tokens = await asyncio.to_thread(reduction.apply_all, found, role)
    return [Vectors(*pair) for pair in zip(embeddings, tokens, strict=True)]
