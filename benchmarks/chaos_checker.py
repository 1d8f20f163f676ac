"""Verifies what a campaign has left: in plain Python, with the embedder itself."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from chaos_clients import Model

Violate = Callable[[str], None]
PATIENCE = 120
"""Seconds in which all that is pending must be encoded, once nothing is broken any more."""


def settle(connection: psycopg.Connection[Any], violate: Violate) -> None:
    """Wait until nothing is pending; what is pending for ever is a violation."""
    deadline = time.monotonic() + PATIENCE
    busy = (
        "SELECT reranker, pending, failed, next_generation, paused_until, last_error"
        " FROM pgrerank.status WHERE pending > 0 OR next_generation IS NOT NULL"
    )
    while rows := connection.execute(busy).fetchall():
        if time.monotonic() > deadline:
            violate(f"pending after {PATIENCE} s: {rows}")
            return
        time.sleep(0.5)


def check_table(
    connection: psycopg.Connection[Any], table: str, models: list[Model], violate: Violate
) -> dict[int, str]:
    """Compare a table with what clients did; returns what is in it."""
    found = dict(connection.execute(f"SELECT id, body FROM {table}").fetchall())
    certain = {key: text for model in models for key, text in model.texts.items()}
    doubtful = {key: texts for model in models for key, texts in model.doubtful.items()}
    for key, text in certain.items():
        if found.get(key) != text:
            violate(f"{table}: row {key} is {found.get(key)!r}, {text!r} was committed")
    for key, texts in doubtful.items():
        if found.get(key) not in texts:
            violate(f"{table}: row {key} is {found.get(key)!r}, one of {texts} expected")
    if strangers := found.keys() - certain.keys() - doubtful.keys():
        violate(f"{table}: rows {sorted(strangers)[:9]} were deleted or never committed")
    return found


def check_vectors(
    connection: psycopg.Connection[Any],
    reranker: str,
    texts: dict[int, str],
    embedder: Path,
    violate: Violate,
) -> None:
    """Each live document has exactly its current vectors."""
    [(generation, failed)] = connection.execute(
        "SELECT generation, failed FROM pgrerank.status WHERE reranker = %s", (reranker,)
    ).fetchall()
    if failed:
        violate(f"{reranker}: {failed} documents failed")
    side = f"pgrerank.{reranker}_{generation}"
    stored = {
        key: (content_hash, vector)
        for key, content_hash, vector in connection.execute(
            f"SELECT s.key, s.content_hash, p.embedding::text FROM {side} s"
            f" LEFT JOIN {side}_passages p ON (p.key, p.passage) = (s.key, 1)"
        )
    }
    tokens = {key for (key,) in connection.execute(f"SELECT DISTINCT key FROM {side}_tokens")}
    for what, keys in (("vectors", stored.keys()), ("token vectors", tokens)):
        if lacking := texts.keys() - keys:
            violate(f"{reranker}: {len(lacking)} documents lack {what}: {sorted(lacking)[:5]}")
        if orphans := keys - texts.keys():
            violate(f"{reranker}: {len(orphans)} {what} of no document: {sorted(orphans)[:5]}")
    wanted = encode(embedder, list(texts.values()))
    for (key, text), vector in zip(texts.items(), wanted, strict=True):
        if key not in stored:
            continue
        content_hash, found = stored[key]
        if content_hash != hashlib.sha256(text.encode()).digest():
            violate(f"{reranker}: the vectors of {key} are those of another text")
        elif np.abs(unit(np.fromstring(found.strip("[]"), sep=",")) - unit(vector)).max() > 0.01:
            violate(f"{reranker}: the embedding of {key} is not its text's")


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1, as it may be stored."""
    return np.asarray(vector / np.linalg.norm(vector))


def encode(embedder: Path, texts: list[str]) -> np.ndarray:
    """Embeddings as the model itself makes them, without pgrerank."""
    from sentence_transformers import SentenceTransformer

    if not texts:
        return np.empty((0, 0))
    return np.asarray(SentenceTransformer(str(embedder), device="cpu").encode(texts))


def check_searches(connection: psycopg.Connection[Any], violate: Violate) -> None:
    """With all mended, strict searches go through every stage."""
    for _ in range(5):
        try:
            rows = connection.execute(
                "SELECT degraded FROM pgrerank.documents_search('bread of flour', strict => true)"
            ).fetchall()
        except psycopg.Error as error:
            violate(f"a strict search after all was mended: {error}")
        else:
            if any(degraded for (degraded,) in rows):
                violate("a search after all was mended is degraded")
