"""What the tools answer; the SDK makes schemas of it, docstrings included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """A document of an answer.

    `text` is its best passage, from the character `start` (from 0) up to `end` of the document;
    `is_cut` says that it is longer. `relevance` is a probability, null where it is not calibrated.
    """

    key: str
    text: str
    start: int | None
    end: int | None
    is_cut: bool
    rank: int
    score: float | None
    relevance: float | None
    stage: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a search found, best first; `notes` say what it is worth."""

    reranker: str
    documents: list[Document]
    notes: list[str]


@dataclass(frozen=True)
class Step:
    """A document after a stage: its place, the places that it won or lost, its score."""

    stage: str
    rank: int | None
    change: int
    score: float | None


@dataclass(frozen=True)
class Way:
    """A document's way through the stages, and which of its tokens answer which of the query's."""

    key: str
    text: str
    rank: int
    relevance: float | None
    steps: list[Step]
    answers: list[str]


@dataclass(frozen=True)
class Why:
    """A search explained; `milliseconds` are by stage."""

    reranker: str
    documents: list[Way]
    milliseconds: dict[str, float]
    notes: list[str]


@dataclass(frozen=True)
class Searchable:
    """A reranker that this role may search by.

    `columns` are the source's, with their types; `pending` and `failed` documents are not found by
    meaning yet, null where the role may not know.
    """

    name: str
    source: str
    description: str | None
    columns: dict[str, str]
    models: dict[str, str]
    calibrated: bool
    pending: int | None
    failed: int | None


@dataclass(frozen=True)
class Status:
    """What can be searched; without a worker, searches go by words alone."""

    database: str
    role: str
    workers_alive: int
    rerankers: list[Searchable]
