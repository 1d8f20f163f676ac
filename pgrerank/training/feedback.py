"""Feedback in the database as triples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgrerank.training.triples import Triple, normal


@dataclass
class Exported:
    """Triples, and what was left out for which reason."""

    triples: list[Triple] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def export_feedback(
    connection: psycopg.Connection[Any], reranker: str, *, relevant_from: float = 0.5
) -> Exported:
    """Feedback on a reranker's documents: one triple a query.

    A document whose mean relevance is `relevant_from` or more is a positive, any other a negative.
    Raises psycopg.Error for a reranker that does not exist, and for a role that may not read it.
    """
    exported = Exported()
    queries: dict[str, list[tuple[str, str, float, str]]] = {}
    rows = connection.execute(
        "SELECT query, key, relevance, content FROM pgrerank.judged(%s)", (reranker,)
    ).fetchall()
    for query, key, relevance, content in rows:
        if content is None or not content.strip():
            exported.dropped["the document is gone or empty"] += 1
        else:
            queries.setdefault(normal(query), []).append((query, key, relevance, content))
    for judged in queries.values():
        triple = _triple(judged, relevant_from, exported.dropped)
        if triple is None:
            exported.dropped["the query has no relevant document"] += len(judged)
        else:
            exported.triples.append(triple)
    return exported


def _triple(
    judged: list[tuple[str, str, float, str]], relevant_from: float, dropped: Counter[str]
) -> Triple | None:
    texts = {key: text for _, key, _, text in judged}
    relevance: dict[str, list[float]] = {}
    for _, key, value, _ in judged:
        relevance.setdefault(key, []).append(value)
    mean = {key: sum(values) / len(values) for key, values in relevance.items()}
    positives = [key for key, value in mean.items() if value >= relevant_from]
    if not positives:
        return None
    known = {texts[key] for key in positives}
    negatives = [
        key for key, value in mean.items() if value < relevant_from and texts[key] not in known
    ]
    dropped["a negative has the text of a positive"] += len(mean) - len(positives) - len(negatives)
    return Triple(
        judged[0][0],
        tuple(texts[key] for key in positives),
        tuple(texts[key] for key in negatives),
        pos_id=tuple(positives),
        neg_id=tuple(negatives),
    )
