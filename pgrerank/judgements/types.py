"""Judgements say which documents answer which queries; a run says what a search gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgrerank.errors import EvaluationError

Qrels = Mapping[str, Mapping[str, int]]
"""Relevance by query id and document key; what is not named is not relevant."""
Run = Mapping[str, Sequence[str]]
"""Document keys by query id, best first."""


@dataclass(frozen=True)
class Judgements:
    """The texts of judged queries by id, and the relevance of their documents by query id and key.

    Relevance 0 or less means judged and not relevant. Raises EvaluationError for a query with a
    text and no judgement, or the other way round.
    """

    queries: Mapping[str, str]
    qrels: Qrels

    def __post_init__(self) -> None:
        for query in sorted(self.queries.keys() ^ self.qrels.keys()):
            lacking = "judgement" if query in self.queries else "text"
            raise EvaluationError(f"query {query!r} has no {lacking}: give one, or leave it out")
        for query, text in self.queries.items():
            if not text.strip():
                raise EvaluationError(f"query {query!r} has an empty text: give it one")
            if not self.qrels[query]:
                raise EvaluationError(f"query {query!r} has no judgement: give one")

    @property
    def count(self) -> int:
        """How many judgements there are."""
        return sum(len(documents) for documents in self.qrels.values())
