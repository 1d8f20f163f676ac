"""A claimed document."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """A claimed document and what to make of it."""

    reranker: str
    generation: int
    key: str
    ticket: int
    content: str | None
    content_hash: bytes
    settled: bool
    embedding_model: str | None
    late_interaction_model: str | None
    token_precision: str
    token_dims: int | None
    token_pool: int
    token_bits: bool
    projection: str | None
