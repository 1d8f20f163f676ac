"""The gate: a new model is compared with the one in use before it may be registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank import catalog
from pgrerank.errors import TrainingError, TriplesError
from pgrerank.evaluation import Comparison
from pgrerank.evaluation.significance import MEASURE, compare_runs
from pgrerank.models import Encoder, ModelSpec, ModelStore, Reranker, Role
from pgrerank.training.sources import recall, recall_encoder
from pgrerank.training.triples import Triple, normal

Progress = Callable[[int, int], None]
Scores = Callable[[int, Sequence[str]], NDArray[np.float32]]
"""Of texts for the query at that place."""

DOCUMENTS = 10_000
"""An embedding is judged on so many documents of the source, besides the relevant ones."""
_BATCH = 64


@dataclass(frozen=True)
class Verdict:
    """How a new model did against the one in use, and whether it may take its place."""

    present: str
    comparison: Comparison
    max_p: float
    documents: int

    @property
    def passed(self) -> bool:
        """Whether the new model is better, by more than chance."""
        return self.comparison.gain > 0 and self.comparison.p <= self.max_p

    def measures(self, *, forced: bool) -> dict[str, Any]:
        """The measures that are stored with the registered model."""
        return {
            "gate": {
                "against": self.present,
                "measure": MEASURE,
                **self.comparison.figures,
                "documents": self.documents,
                "passed": self.passed,
                "forced": forced and not self.passed,
            }
        }


def judge(
    connection: psycopg.Connection[Any],
    reranker: str,
    model: ModelSpec,
    held_out: Sequence[Triple],
    *,
    max_p: float = 0.05,
    depth: int = 30,
    on_progress: Progress = lambda _done, _total: None,
) -> Verdict:
    """Compare a model with the one of its kind in use, by nDCG@10 of held-out queries.

    An embedding model ranks up to 10,000 documents of the source and the relevant ones, exactly;
    the others rank the `depth` best of today's recall, as they would in a search. Raises
    TriplesError without held-out queries, TrainingError when the reranker has no model of this
    kind.
    """
    if not held_out:
        raise TriplesError("there are no held-out queries to compare on")
    source = catalog.read_reranker(connection, reranker)
    present = source.model(model.kind)
    if present is None:
        raise TrainingError(
            f"reranker {reranker} has no {model.kind} model to compare with: register the new one"
            " by pgrerank models add"
        )
    pools = (
        _sample(connection, source, held_out)
        if model.kind == "embedding"
        else _recalled(connection, source, held_out, depth)
    )
    total = 2 * len(held_out)
    orders = []
    for turn, spec in enumerate((catalog.read_model(connection, present), model)):
        score = _scorer(spec, [triple.query for triple in held_out])
        orders.append(_order(held_out, pools, score, turn, on_progress, total))
    qrels = {
        str(place): {normal(text): 1 for text in triple.pos}
        for place, triple in enumerate(held_out)
    }
    documents = max(len(pool) for pool in pools)
    return Verdict(present, compare_runs(qrels, *orders), max_p, documents)


def _order(
    held_out: Sequence[Triple],
    pools: Sequence[list[str]],
    score: Scores,
    turn: int,
    on_progress: Progress,
    total: int,
) -> dict[str, list[str]]:
    order = {}
    for place in range(len(held_out)):
        scores = score(place, pools[place])
        best = np.argsort(-scores, kind="stable")
        unlike = dict.fromkeys(normal(pools[place][index]) for index in best)
        order[str(place)] = list(unlike)[:10]
        on_progress(turn * len(held_out) + place + 1, total)
    return order


class _CrossEncoded:
    """Scores texts by a cross-encoder."""

    def __init__(self, reranker: Reranker, queries: Sequence[str]) -> None:
        self._reranker, self._queries = reranker, queries

    def __call__(self, place: int, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._reranker.score([(self._queries[place], text) for text in texts])


class _Embedded:
    """Scores texts by the inner product of embeddings; all queries share one pool of texts."""

    def __init__(self, encoder: Encoder, queries: Sequence[str]) -> None:
        self._encoder = encoder
        self._queries = self._encode(queries, "query")
        self._pool: NDArray[np.float32] | None = None

    def __call__(self, place: int, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._pool is None:
            self._pool = self._encode(texts, "document")
        scores: NDArray[np.float32] = self._pool @ self._queries[place]
        return scores

    def _encode(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        parts = [
            self._encoder.encode(
                texts[start : start + _BATCH], role=role, embeddings=True, tokens=False
            ).embeddings
            for start in range(0, len(texts), _BATCH)
        ]
        return np.concatenate([part for part in parts if part is not None])


class _MaxSim:
    """Scores texts by MaxSim; a text's token vectors are kept for the other queries."""

    def __init__(self, encoder: Encoder, queries: Sequence[str]) -> None:
        self._encoder = encoder
        self._queries = self._encode(queries, "query")
        self._tokens: dict[str, NDArray[np.float32]] = {}

    def __call__(self, place: int, texts: Sequence[str]) -> NDArray[np.float32]:
        missing = [text for text in dict.fromkeys(texts) if text not in self._tokens]
        self._tokens.update(zip(missing, self._encode(missing, "document"), strict=True))
        query = self._queries[place]
        return np.array(
            [
                (query @ tokens.T).max(axis=1).sum() if len(tokens) else 0.0
                for tokens in (self._tokens[text] for text in texts)
            ],
            np.float32,
        )

    def _encode(self, texts: Sequence[str], role: Role) -> list[NDArray[np.float32]]:
        if not texts:
            return []
        return self._encoder.encode(texts, role=role, embeddings=False, tokens=True).tokens or []


def _scorer(spec: ModelSpec, queries: Sequence[str]) -> Scores:
    store = ModelStore()
    if spec.kind == "cross_encoder":
        return _CrossEncoded(store.reranker(spec), queries)
    return (_Embedded if spec.kind == "embedding" else _MaxSim)(store.encoder(spec), queries)


def _sample(
    connection: psycopg.Connection[Any], source: catalog.Reranker, held_out: Sequence[Triple]
) -> list[list[str]]:
    """One pool for all queries: documents in an order that says nothing of them, and the judged."""
    rows = connection.execute(
        "SELECT content FROM pgrerank.texts(%s) WHERE content ~ '\\S' ORDER BY md5(key) LIMIT %s",
        (source.name, DOCUMENTS),
    ).fetchall()
    judged = [text for triple in held_out for text in (*triple.pos, *triple.neg)]
    pool = list(dict.fromkeys([*(text for (text,) in rows), *judged]))
    return [pool] * len(held_out)


def _recalled(
    connection: psycopg.Connection[Any],
    source: catalog.Reranker,
    held_out: Sequence[Triple],
    depth: int,
) -> list[list[str]]:
    encoder = recall_encoder(connection, source)
    vectors = encoder.encode(
        [triple.query for triple in held_out], role="query", embeddings=True, tokens=False
    ).embeddings
    assert vectors is not None
    return [
        [found.text for found in recall(connection, source, vector, depth) if found.text.strip()]
        for vector in vectors.tolist()
    ]
