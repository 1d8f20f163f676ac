"""Reads what training needs of a reranker: its candidates, with the documents' texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from pgrerank.catalog import Reranker, read_model, search_with_texts
from pgrerank.errors import TrainingError
from pgrerank.models import Encoder, load_encoder


@dataclass
class Candidate:
    """A recalled document; `rank` from 1, `logit` the cross-encoder's score once it has one."""

    key: str
    score: float
    text: str
    rank: int
    logit: float | None = None


def recall_encoder(connection: psycopg.Connection[Any], reranker: Reranker) -> Encoder:
    """A reranker's embedding model, loaded; raises TrainingError where it has none."""
    name = reranker.model("embedding")
    if name is None:
        raise TrainingError(
            f"reranker {reranker.name} has no embedding model, so that nothing can be recalled here"
        )
    return load_encoder(read_model(connection, name))


def recall(
    connection: psycopg.Connection[Any], reranker: Reranker, vector: list[float], depth: int
) -> list[Candidate]:
    """The `depth` documents that recall finds first for a query's embedding, with their texts."""
    arguments = {
        "query_embedding": str(vector),
        "top_k": depth,
        "candidates": depth,
        "stages": ["dense"],
    }
    rows = search_with_texts(connection, reranker, arguments, casts={"query_embedding": "vector"})
    return [Candidate(key, score, text, rank) for key, score, text, rank in rows]
