"""Blends of the stages' scores, and the search for weights that rank judged queries best."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pgrerank.errors import EvaluationError
from pgrerank.evaluation.measures import measure_queries
from pgrerank.evaluation.pools import Pool, Sizes
from pgrerank.evaluation.result import BlendFound
from pgrerank.evaluation.significance import compare
from pgrerank.judgements import Qrels

__all__ = ["find_weights", "weights_to_try"]

FOLDS = 5
_STEPS = 10


def weights_to_try(stages: Sequence[str], steps: int = _STEPS) -> Iterator[dict[str, float]]:
    """All weights of the stages in so many parts that add up to 1, except all to the last."""
    for shares in itertools.product(range(steps + 1), repeat=len(stages)):
        if sum(shares) == steps and shares[-1] < steps:
            yield {
                stage: share / steps for stage, share in zip(stages, shares, strict=True) if share
            }


def find_weights(
    pools: Mapping[str, Pool],
    qrels: Qrels,
    stages: Sequence[str],
    sizes: Sizes,
    measure: str,
    present: Mapping[str, float],
    *,
    seed: int = 1,
) -> BlendFound:
    """Find the weights of the highest mean over the judged queries, and their worth on others.

    The highest with its neighbours, a tenth away: a single best point is mostly luck.
    Cross-validated: of five parts of the queries, each is ranked by the weights that are best on
    the other four, and compared with `present`, the weights in use. Raises EvaluationError where
    there are fewer than ten queries: what is found on those is chance.
    """
    queries = sorted(qrels)
    if len(queries) < 2 * FOLDS:
        raise EvaluationError(
            f"{len(queries)} judged queries are too few to find weights on:"
            f" expected {2 * FOLDS} at least"
        )
    tried = list(weights_to_try(stages))
    values = np.array([_values(pools, qrels, weights, sizes, measure) for weights in tried])
    now = _values(pools, qrels, present, sizes, measure)
    smooth = _smoothed(values, np.array([[one.get(s, 0.0) for s in stages] for one in tried]))
    held = _cross_validated(values, smooth, seed)
    best = int(smooth.mean(axis=1).argmax())
    compared = compare(
        dict(zip(queries, now.tolist(), strict=True)),
        dict(zip(queries, held.tolist(), strict=True)),
    )
    return BlendFound(
        weights=tried[best],
        quality=float(values[best].mean()),
        cross_validated=float(held.mean()),
        present=float(now.mean()),
        p=compared.p,
    )


def _values(
    pools: Mapping[str, Pool],
    qrels: Qrels,
    weights: Mapping[str, float],
    sizes: Sizes,
    measure: str,
) -> NDArray[np.float64]:
    run = {query: pool.order(sizes, weights) for query, pool in pools.items()}
    found = measure_queries(qrels, run, [measure])[measure]
    return np.array([found[query] for query in sorted(qrels)])


def _smoothed(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of each row with those whose weights differ by a tenth moved from stage to stage."""
    apart = np.abs(weights[:, None] - weights[None]).sum(axis=2)
    near = (apart < 2.5 / _STEPS).astype(np.float64)
    smooth: NDArray[np.float64] = near @ values / near.sum(axis=1, keepdims=True)
    return smooth


def _cross_validated(
    values: NDArray[np.float64], smooth: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    places = list(range(values.shape[1]))
    random.Random(seed).shuffle(places)  # noqa: S311
    held = np.zeros(values.shape[1])
    for fold in range(FOLDS):
        out = places[fold::FOLDS]
        best = int(np.delete(smooth, out, axis=1).mean(axis=1).argmax())
        held[out] = values[best, out]
    return held
