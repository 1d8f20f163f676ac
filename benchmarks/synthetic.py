"""Made-up token vectors, stored as a worker stores those of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import psycopg

CLAIM = 64
STORE = (
    "SELECT pgrerank._store_tokens(r, g, %s, %s, %s, %b) FROM pgrerank.rerankers r"
    " JOIN pgrerank.generations g ON (g.reranker, g.number) = (r.name, r.generation)"
    " WHERE r.name = %s"
)


def unit_vectors(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Random directions, float32 of that shape."""
    vectors = generator.standard_normal(shape, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def store_parts(
    connection: psycopg.Connection[Any],
    reranker: str,
    tier: str,
    documents: Iterable[tuple[int, Sequence[bytes]]],
) -> int:
    """Store documents' parts by key, by the product's own statement; returns how many bytes.

    COPY would be faster, but leaves pages half empty that INSERT fills up.
    """
    stored = 0
    waiting = iter(documents)
    while claimed := list(islice(waiting, CLAIM)):
        parts = [(str(key), part) for key, own in claimed for part in own]
        keys = [str(key) for key, _ in claimed]
        connection.execute(
            STORE, (tier, keys, [key for key, _ in parts], [part for _, part in parts], reranker)
        )
        stored += sum(len(part) for _, part in parts)
    return stored
