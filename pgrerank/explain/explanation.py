"""Explanations: the rows of `pgrerank.explain_search`, with the documents' texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import psycopg

from pgrerank.catalog import read_reranker, read_texts
from pgrerank.stages import STAGES

__all__ = [
    "Alignment",
    "ExplainedDocument",
    "Explanation",
    "Step",
    "explanation",
    "shown_time",
    "stages_of",
    "steps",
    "time_parts",
]
_LABELS = {name: stage.label for name, stage in STAGES.items()}


class Alignment(TypedDict):
    """How a document's tokens answer the query's; the worker's call `align` has the meanings."""

    query: list[str]
    tokens: list[str]
    spans: list[tuple[int, int] | None]
    best: list[int]
    scores: list[float]
    heat: list[float]
    heat_from: list[int]


class ExplainedDocument(TypedDict):
    """A row of `explain_search` without what is the same in all rows.

    `text` is the document's best passage; `passage` says where that stands in a longer document:
    its first character, and the one after its last. It is None where the text is all of it.

    `scores` and `ranks` are by stage; None for a stage that left it out. `signals_score` is None
    where there are no signals, `relevance` where that is not calibrated.
    """

    key: str
    text: str
    passage: tuple[int, int] | None
    score: float | None
    signals_score: float | None
    rank: int
    stage: str
    relevance: float | None
    scores: dict[str, float | None]
    ranks: dict[str, int | None]
    alignment: Alignment | None


class Explanation(TypedDict):
    """A search explained; `times` are milliseconds by stage, `reason` says why it is degraded,
    or why `cross_encoder_model` is the fallback.
    """

    reranker: str
    generation: int
    query: str
    times: dict[str, float]
    degraded: bool
    reason: str | None
    cross_encoder_model: str | None
    instruction: str | None
    documents: list[ExplainedDocument]


def explanation(
    connection: psycopg.Connection[Any],
    reranker: str,
    query: str,
    generation: int | None,
    rows: Sequence[Mapping[str, Any]],
    instruction: str | None = None,
) -> Explanation:
    """Make an explanation of the rows of `explain_search`, reading texts as the caller may.

    For texts to be those that were aligned, call it in the same REPEATABLE READ transaction. An
    `instruction` of None is the reranker's own.
    """
    first: Mapping[str, Any] = rows[0] if rows else {}
    keys = [row["key"] for row in rows]
    described = read_reranker(connection, reranker, generation)
    number = described.generation
    texts = read_texts(connection, reranker, keys, number)
    read_by = [row["cross_encoder_model"] for row in rows if row["cross_encoder_model"]]
    return Explanation(
        reranker=reranker,
        generation=number,
        query=query,
        times=first.get("times", {}),
        degraded=first.get("degraded", False),
        reason=first.get("reason"),
        cross_encoder_model=read_by[0] if read_by else None,
        instruction=instruction or described.settings["instruction"],
        documents=[_document(row, texts.get(row["key"], "")) for row in rows],
    )


def _document(row: Mapping[str, Any], text: str) -> ExplainedDocument:
    is_part = row["passage"] is not None and len(row["passage"]) < len(text)
    return ExplainedDocument(
        key=row["key"],
        text=row["passage"] if is_part else text,
        passage=(row["passage_start"], row["passage_end"]) if is_part else None,
        score=row["score"],
        signals_score=row["signals_score"],
        rank=row["rank"],
        stage=row["stage"],
        relevance=row["relevance"],
        scores={stage: row[f"{stage}_score"] for stage in STAGES},
        ranks={stage: row[f"{stage}_rank"] for stage in STAGES},
        alignment=row["alignment"],
    )


def time_parts(times: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """The stages that took time, in their order: stage, name, milliseconds; then the rest."""
    names = {"encode_query": "encoding the query"} | _LABELS | {"passages": "passages"}
    parts = [(stage, name, times[stage]) for stage, name in names.items() if times.get(stage)]
    rest = times.get("total", 0) - sum(ms for _, _, ms in parts)
    return [*parts, ("rest", "the rest", rest)] if rest > 0 else parts


def shown_time(value: float) -> str:
    """Format milliseconds for people."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


class Step(NamedTuple):
    """A document after a stage. `change`: places won (above zero) or lost since the one before."""

    stage: str
    rank: int | None
    score: float | None
    change: int


def stages_of(explanation: Explanation) -> dict[str, str]:
    """The stages that ranked any of the documents, with what people call them.

    In place of the dense leg, the caller's keys may have made the candidates.
    """
    documents = explanation["documents"]
    names = {
        stage: name
        for stage, name in _LABELS.items()
        if any(document["ranks"][stage] is not None for document in documents)
    }
    if "dense" in names and all(document["scores"]["dense"] is None for document in documents):
        names["dense"] = "as given"
    return names


def steps(document: ExplainedDocument, through: Mapping[str, str]) -> Iterator[Step]:
    """A document's ranks and scores after these stages; None for a stage that left it out."""
    before: int | None = None
    for stage in through:
        rank = document["ranks"][stage]
        change = before - rank if rank is not None and before is not None else 0
        yield Step(stage, rank, document["scores"][stage], change)
        before = before if rank is None else rank
