"""Why documents have their ranks: what `pgrerank.explain_search` says, with the texts to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

__all__ = [
    "STAGES",
    "Alignment",
    "ExplainedDocument",
    "Explanation",
    "Step",
    "explanation",
    "milliseconds",
    "stages",
    "steps",
    "time_parts",
]

STAGES = {
    "recall": "recall",
    "maxsim_bit": "MaxSim by bits",
    "maxsim": "MaxSim",
    "cross_encoder": "cross-encoder",
}
"""What people call the stages, in the order in which they run."""


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
    """A row of `explain_search` without what is the same in all rows; `text` is the document's."""

    key: str
    text: str
    score: float | None
    rank: int
    stage: str
    recall_score: float | None
    recall_rank: int | None
    maxsim_bit_score: float | None
    maxsim_bit_rank: int | None
    maxsim_score: float | None
    maxsim_rank: int | None
    cross_encoder_score: float | None
    cross_encoder_rank: int | None
    alignment: Alignment | None


class Explanation(TypedDict):
    """A search explained; `times` are milliseconds by stage, `reason` says why it is degraded."""

    reranker: str
    generation: int
    query: str
    times: dict[str, float]
    degraded: bool
    reason: str | None
    documents: list[ExplainedDocument]


def explanation(
    connection: psycopg.Connection[Any],
    reranker: str,
    query: str,
    generation: int | None,
    rows: Sequence[Mapping[str, Any]],
) -> Explanation:
    """Make an explanation of the rows of `explain_search`, reading texts as the caller may.

    For texts to be those that were aligned, call it in the same REPEATABLE READ transaction.
    """
    first: Mapping[str, Any] = rows[0] if rows else {}
    number, texts = _texts(connection, reranker, generation, [row["key"] for row in rows])
    same_in_all = ("times", "degraded", "reason")
    documents: list[Any] = [
        {name: value for name, value in row.items() if name not in same_in_all}
        | {"text": texts.get(row["key"], "")}
        for row in rows
    ]
    return Explanation(
        reranker=reranker,
        generation=number,
        query=query,
        times=first.get("times", {}),
        degraded=first.get("degraded", False),
        reason=first.get("reason"),
        documents=documents,
    )


def _texts(
    connection: psycopg.Connection[Any], reranker: str, generation: int | None, keys: list[str]
) -> tuple[int, dict[str, str]]:
    """The generation's number, and by key the texts that it is made of."""
    cursor = connection.cursor(row_factory=tuple_row)
    [(number, source, column, of_type, expression)] = cursor.execute(
        "SELECT g.number, r.source::text, r.key_column::text, r.key_type::text, g.text_expression"
        " FROM pgrerank._reranker(%s) r JOIN pgrerank.generations g"
        " ON g.reranker = r.name AND g.number = coalesce(%s, r.generation)",
        (reranker, generation),
    ).fetchall()
    query = sql.SQL(
        "SELECT {key}::text, coalesce(({text}), '') FROM {source} WHERE {key} = ANY (%s::{type}[])"
    ).format(
        key=sql.Identifier(column),
        text=sql.SQL(expression),
        source=sql.SQL(source),
        type=sql.SQL(of_type),
    )
    return number, dict(cursor.execute(query, (keys,)).fetchall())


def time_parts(found: Explanation) -> list[tuple[str, str, float]]:
    """The stages that took time, in their order: stage, name, milliseconds; then the rest."""
    names = {"encode_query": "encoding the query", **STAGES}
    times = found["times"]
    parts = [(stage, name, times[stage]) for stage, name in names.items() if times.get(stage)]
    rest = times.get("total", 0) - sum(ms for _, _, ms in parts)
    return [*parts, ("rest", "the rest", rest)] if rest > 0 else parts


def milliseconds(value: float) -> str:
    """A time as people want to read it."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


class Step(NamedTuple):
    """A document after a stage. `change`: places won (above zero) or lost since the one before."""

    stage: str
    rank: int | None
    score: float | None
    change: int


def stages(found: Explanation) -> dict[str, str]:
    """The stages that ranked any of the documents, with what people call them.

    In place of recall, full text or the caller's keys may have made the candidates.
    """
    documents = found["documents"]
    names = {
        stage: name
        for stage, name in STAGES.items()
        if any(_rank(document, stage) is not None for document in documents)
    }
    if any(document["stage"] == "fulltext" for document in documents):
        names["recall"] = "full text"
    elif "recall" in names and all(document["recall_score"] is None for document in documents):
        names["recall"] = "as given"
    return names


def steps(document: ExplainedDocument, through: Mapping[str, str]) -> Iterator[Step]:
    """A document's ranks and scores after these stages; None for a stage that left it out."""
    before: int | None = None
    for stage in through:
        rank = _rank(document, stage)
        change = before - rank if rank is not None and before is not None else 0
        score: float | None = document[f"{stage}_score"]  # type: ignore[literal-required]
        yield Step(stage, rank, score, change)
        before = before if rank is None else rank


def _rank(document: ExplainedDocument, stage: str) -> int | None:
    rank: int | None = document[f"{stage}_rank"]  # type: ignore[literal-required]
    return rank
