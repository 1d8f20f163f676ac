"""Judgements say which documents answer which queries; a run says what a search gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pgrerank.errors import EvaluationError

Qrels = Mapping[str, Mapping[str, int]]
"""Relevance by query id and document key; what is not named is not relevant."""
Stretches = Mapping[str, Mapping[str, Sequence[tuple[int, int]]]]
"""By query id and document key, where in its text the answer is: first characters, counted from 0,
and those after the last."""
Run = Mapping[str, Sequence[str]]
"""Document keys by query id, best first."""


@dataclass(frozen=True)
class Judgements:
    """The texts of judged queries by id, and the relevance of their documents by query id and key.

    Relevance 0 or less means judged and not relevant. ``passages`` says of some relevant documents
    where the answer is. Raises EvaluationError for a query with a text and no judgement, or the
    other way round, and for a passage of a document that is not judged.
    """

    queries: Mapping[str, str]
    qrels: Qrels
    passages: Stretches = field(default_factory=dict)

    def __post_init__(self) -> None:
        for query in sorted(self.queries.keys() ^ self.qrels.keys()):
            lacking = "judgement" if query in self.queries else "text"
            raise EvaluationError(f"query {query!r} has no {lacking}: give one, or leave it out")
        for query, text in self.queries.items():
            if not text.strip():
                raise EvaluationError(f"query {query!r} has an empty text: give it one")
            if not self.qrels[query]:
                raise EvaluationError(f"query {query!r} has no judgement: give one")
        for query, documents in self.passages.items():
            for key in sorted(documents.keys() - self.qrels.get(query, {}).keys()):
                raise EvaluationError(
                    f"query {query!r} has passages of document {key!r}, but no judgement of it:"
                    " give one"
                )

    def only(self, queries: Iterable[str]) -> Judgements:
        """The judgements of some of the queries, in this order."""
        some = list(queries)
        return Judgements(
            {query: self.queries[query] for query in some},
            {query: self.qrels[query] for query in some},
            {query: self.passages[query] for query in some if query in self.passages},
        )

    @property
    def count(self) -> int:
        """How many judgements there are."""
        return sum(len(documents) for documents in self.qrels.values())
