"""Hard negatives from a reranker's own HNSW index: what recall ranks high and nobody wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import psycopg

from pgrerank import catalog
from pgrerank.errors import TriplesError
from pgrerank.models import Encoder, Reranker, load_reranker
from pgrerank.training.sources import Candidate, recall, recall_encoder
from pgrerank.training.triples import Triple, normal

Progress = Callable[[int, int], None]
_BATCH = 32


@dataclass(frozen=True)
class Guards:
    """Which candidates become negatives.

    Those at ranks `first` to `last` (from 1) of recall, whose text is not a positive's; whose
    cosine is at least `margin` below the query's best positive's, where that is set; and whose
    cross-encoder score (a logit) is at least `false_negative_margin` below the best positive's,
    where there is a cross-encoder: an unjudged document that it finds as good as the positive
    probably is one. The `negatives` best of them are kept.
    """

    first: int = 2
    last: int = 50
    margin: float | None = None
    false_negative_margin: float = 1.0
    negatives: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 10_000:
            raise TriplesError(
                f"ranks {self.first} to {self.last}: 1 <= first <= last <= 10000 is expected"
            )
        if self.negatives < 1:
            raise TriplesError(f"negatives is {self.negatives}, at least 1 is expected")


@dataclass
class Mined:
    """Triples with their negatives, and how many candidates were dropped for which reason."""

    triples: list[Triple] = field(default_factory=list)
    candidates: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    without_negatives: int = 0

    @property
    def negatives(self) -> int:
        """How many negatives there are now."""
        return sum(len(triple.neg) for triple in self.triples)


class _Models(NamedTuple):
    encoder: Encoder
    cross_encoder: Reranker | None


def _cross_encoder(
    connection: psycopg.Connection[Any], source: catalog.Reranker
) -> Reranker | None:
    name = source.model("cross_encoder")
    return None if name is None else load_reranker(catalog.read_model(connection, name))


def mine(
    connection: psycopg.Connection[Any],
    reranker: str,
    triples: Sequence[Triple],
    guards: Guards,
    *,
    on_progress: Progress = lambda _done, _total: None,
) -> Mined:
    """Mine negatives for the triples' queries; negatives that they have come first.

    Triples of one query are joined; texts that differ by case and white space alone are one text.
    The reranker's models run here, so no worker is needed. With a cross-encoder the triples
    carry its scores, for distillation. Raises psycopg.Error for a reranker that does not exist,
    TrainingError for one without an embedding model, ModelError when a model can't be loaded.
    """
    source = catalog.read_reranker(connection, reranker)
    models = _Models(recall_encoder(connection, source), _cross_encoder(connection, source))
    distance = source.settings["distance"]
    if guards.margin is not None and distance != "cosine":
        raise TriplesError(
            f"reranker {reranker} recalls by {distance}: a margin is one of cosines; leave it out"
        )
    joined = _join(triples)
    mined = Mined()
    for start in range(0, len(joined), _BATCH):
        batch = joined[start : start + _BATCH]
        vectors = models.encoder.encode(
            [triple.query for triple in batch], role="query", embeddings=True, tokens=False
        ).embeddings
        assert vectors is not None
        for offset, (triple, vector) in enumerate(zip(batch, vectors.tolist(), strict=True)):
            mined.triples.append(
                _mine_one(connection, source, models, triple, vector, guards, mined)
            )
            on_progress(start + offset + 1, len(joined))
    return mined


def _mine_one(
    connection: psycopg.Connection[Any],
    source: catalog.Reranker,
    models: _Models,
    triple: Triple,
    vector: list[float],
    guards: Guards,
    mined: Mined,
) -> Triple:
    found = recall(connection, source, vector, guards.last)
    mined.candidates += len(found)
    best = _best_cosine(models, triple, vector) if guards.margin is not None else None
    kept = []
    for candidate, reason in _judge(found, triple, guards, best):
        if reason is None:
            kept.append(candidate)
        else:
            mined.dropped[reason] += 1
    scores = _own_scores(models, triple)
    if scores is not None and models.cross_encoder is not None:
        limit = max(scores[0]) - guards.false_negative_margin
        kept = _below(models.cross_encoder, triple.query, kept, limit, guards.negatives, mined)
    mined.dropped["more than wanted"] += max(0, len(kept) - guards.negatives)
    kept = kept[: guards.negatives]
    mined.without_negatives += not kept and not triple.neg
    return _with_negatives(triple, kept, scores)


def _below(
    cross_encoder: Reranker,
    query: str,
    candidates: list[Candidate],
    limit: float,
    wanted: int,
    mined: Mined,
) -> list[Candidate]:
    """Pick candidates that score no more than the limit, scoring no more than needed."""
    kept: list[Candidate] = []
    for start in range(0, len(candidates), wanted):
        part = candidates[start : start + wanted]
        if len(kept) >= wanted:
            return kept + candidates[start:]
        scores = cross_encoder.score([(query, candidate.text) for candidate in part]).tolist()
        for candidate, score in zip(part, scores, strict=True):
            candidate.logit = score
            if score <= limit:
                kept.append(candidate)
            else:
                mined.dropped["likely relevant, by the cross-encoder"] += 1
    return kept


def _judge(
    found: Sequence[Candidate], triple: Triple, guards: Guards, best: float | None
) -> Iterator[tuple[Candidate, str | None]]:
    """Each candidate with the reason to drop it, if there is one."""
    positives = {normal(text) for text in triple.pos}
    seen = {normal(text) for text in triple.neg}
    keys = {*(triple.pos_id or ()), *(triple.neg_id or ())}
    for candidate in found:
        text = normal(candidate.text)
        reason = None
        if text in positives or candidate.key in (triple.pos_id or ()):
            reason = "a positive"
        elif not text or text in seen or candidate.key in keys:
            reason = "empty or a duplicate"
        elif candidate.rank < guards.first:
            reason = "ranked too high"
        elif best is not None and candidate.score > best - (guards.margin or 0.0):
            reason = "too close to the positive"
        seen.add(text)
        yield candidate, reason


def _best_cosine(models: _Models, triple: Triple, vector: list[float]) -> float:
    embeddings = models.encoder.encode(
        list(triple.pos), role="document", embeddings=True, tokens=False
    ).embeddings
    assert embeddings is not None
    return float((embeddings @ vector).max())


def _own_scores(models: _Models, triple: Triple) -> tuple[list[float], list[float]] | None:
    """The cross-encoder's scores of the positives and of the negatives that there are."""
    if models.cross_encoder is None:
        return None
    pairs = [(triple.query, text) for text in (*triple.pos, *triple.neg)]
    scores = models.cross_encoder.score(pairs).tolist()
    return scores[: len(triple.pos)], scores[len(triple.pos) :]


def _with_negatives(
    triple: Triple, kept: Sequence[Candidate], scores: tuple[list[float], list[float]] | None
) -> Triple:
    pos_scores, neg_scores = triple.pos_scores, None
    if scores is not None:
        pos_scores = tuple(scores[0])
        neg_scores = (*scores[1], *(c.logit for c in kept if c.logit is not None))
    elif not kept:
        neg_scores = triple.neg_scores
    neg_id = None
    if triple.neg_id is not None or not triple.neg:
        neg_id = (*(triple.neg_id or ()), *(candidate.key for candidate in kept))
    return replace(
        triple,
        neg=(*triple.neg, *(candidate.text for candidate in kept)),
        pos_scores=pos_scores if neg_scores is not None else None,
        neg_scores=neg_scores,
        neg_id=neg_id,
    )


def _join(triples: Sequence[Triple]) -> list[Triple]:
    """One triple a query, its texts without duplicates; scores are dropped where two are joined."""
    by_query: dict[str, Triple] = {}
    for triple in triples:
        name = normal(triple.query)
        by_query[name] = _joined(by_query[name], triple) if name in by_query else triple
    return list(by_query.values())


def _joined(one: Triple, other: Triple) -> Triple:
    pos = _unlike((*one.pos, *other.pos))
    positives = {normal(text) for text in pos}
    neg = _unlike(tuple(t for t in (*one.neg, *other.neg) if normal(t) not in positives))
    return Triple(one.query, pos, neg, id=one.id)


def _unlike(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple({normal(text): text for text in reversed(texts)}.values())[::-1]
