"""Made-up vectors of documents of one passage, stored as a worker stores those of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

CLAIM = 64
STORE = (
    "INSERT INTO {} (key, passage, part, tokens)"
    " SELECT t.key, 1, t.part, t.tokens"
    " FROM unnest(%s::bigint[], %s::int[], %b) t (key, part, tokens)"
)


def unit_vectors(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Random directions, float32 of that shape."""
    vectors = generator.standard_normal(shape, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def store_embeddings(
    connection: psycopg.Connection[Any], reranker: str, embeddings: Iterable[np.ndarray]
) -> None:
    """Store documents with the keys 0, 1 … and an embedding each."""
    documents, passages = (
        sql.Identifier("pgrerank", f"{reranker}_1{kind}") for kind in ("", "_passages")
    )
    copy = sql.SQL("COPY {} (key, passage, embedding, hash, cut_hash) FROM STDIN")
    with connection.cursor().copy(copy.format(passages)) as rows:
        for key, vector in enumerate(embeddings):
            written = ",".join(f"{value:.4g}" for value in vector.tolist())
            rows.write_row((key, 1, f"[{written}]", b"-", b"-"))
    connection.execute(
        sql.SQL(
            "INSERT INTO {} (key, content_hash, tenant) SELECT p.key, '-', p.tenant FROM {} p"
        ).format(documents, passages)
    )


def store_parts(
    connection: psycopg.Connection[Any],
    reranker: str,
    tier: str,
    documents: Iterable[tuple[int, Sequence[bytes]]],
) -> int:
    """Store documents' parts by key, as the product does; returns how many bytes.

    COPY would be faster, but leaves pages half empty that INSERT fills up.
    """
    stored = 0
    waiting = iter(documents)
    while claimed := list(islice(waiting, CLAIM)):
        rows = [(key, n, part) for key, own in claimed for n, part in enumerate(own, 1)]
        table = sql.Identifier("pgrerank", f"{reranker}_1_{tier}")
        connection.execute(
            sql.SQL(STORE).format(table), [list(column) for column in zip(*rows, strict=True)]
        )
        stored += sum(len(part) for _, _, part in rows)
    return stored
