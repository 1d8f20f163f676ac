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
from pgrerank.evaluation.significance import compare, is_worth_it
from pgrerank.judgements import Qrels
from pgrerank.stages import DEFAULT_BLEND, STAGES

__all__ = [
    "check_queries",
    "cross_validated",
    "find_weights",
    "fixed_blends",
    "folds",
    "weights_to_try",
]

FOLDS = 5


def weights_to_try(stages: Sequence[str]) -> Iterator[dict[str, float]]:
    """All weights of the stages that add up to 1, in tenths, or in fifths of more than three.

    All to the last is left out: no score then says which documents it shall see.
    """
    steps = _steps(stages)
    for shares in itertools.product(range(steps + 1), repeat=len(stages)):
        if sum(shares) == steps and shares[-1] < steps:
            yield {
                stage: share / steps for stage, share in zip(stages, shares, strict=True) if share
            }


def _steps(stages: Sequence[str]) -> int:
    return 10 if len(stages) <= 3 else 5


def fixed_blends(stages: Sequence[str]) -> dict[str, dict[str, float]]:
    """The default blend, and those that leave out one stage of it, by what they are called."""
    default = {stage: DEFAULT_BLEND[stage] for stage in stages}
    blends = {"the default blend": default}
    for stage in stages[1:]:
        rest = {name: weight for name, weight in default.items() if name != stage}
        blends[f"the default blend without {STAGES[stage].label}"] = rest
    return blends


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
    """Choose the weights that rank best: found ones, the default ones, or those less one stage.

    Found are those of the highest mean over the judged queries, with their neighbours, one step
    away: a single best point is mostly luck. They are judged by queries that they were not found
    on: of five parts of the queries, each is ranked by the weights that are best on the other four.
    All are compared with `present`, the weights in use; p is that of the best of so many. Raises
    EvaluationError where there are fewer than ten queries: what is found on those is chance.
    """
    queries = sorted(qrels)
    check_queries(len(queries))
    tried = list(weights_to_try(stages))
    values = np.array([_values(pools, qrels, weights, sizes, measure) for weights in tried])
    smooth = _smoothed(
        values,
        np.array([[one.get(s, 0.0) for s in stages] for one in tried]),
        step=1 / _steps(stages),
    )
    best = int(smooth.mean(axis=1).argmax())
    choices = {"the blend found": (tried[best], cross_validated(values, smooth, seed))}
    for name, weights in fixed_blends(stages).items():
        choices[name] = (weights, _values(pools, qrels, weights, sizes, measure))
    now = _values(pools, qrels, present, sizes, measure)
    found = [
        _choice(name, weights, dict(zip(queries, held.tolist(), strict=True)), now, len(choices))
        for name, (weights, held) in choices.items()
    ]
    return max(found, key=lambda one: (is_worth_it(_gain(one), one["p"]), _gain(one)))


def check_queries(number: int) -> None:
    """Raise EvaluationError where weights would be found on too few queries."""
    if number < 2 * FOLDS:
        raise EvaluationError(
            f"{number} judged queries are too few to find weights on: expected {2 * FOLDS} at least"
        )


def _choice(
    name: str,
    weights: dict[str, float],
    held: Mapping[str, float],
    now: NDArray[np.float64],
    choices: int,
) -> BlendFound:
    compared = compare(dict(zip(held, now.tolist(), strict=True)), held)
    return BlendFound(
        name=name,
        weights=weights,
        quality=compared.after,
        present=compared.before,
        p=min(1.0, compared.p * choices),
    )


def _gain(found: BlendFound) -> float:
    return found["quality"] - found["present"]


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


def _smoothed(
    values: NDArray[np.float64], weights: NDArray[np.float64], step: float
) -> NDArray[np.float64]:
    """Means of each row with those whose weights differ by a step moved from stage to stage."""
    apart = np.abs(weights[:, None] - weights[None]).sum(axis=2)
    near = (apart < 2.5 * step).astype(np.float64)
    smooth: NDArray[np.float64] = near @ values / near.sum(axis=1, keepdims=True)
    return smooth


def folds(number: int, seed: int) -> list[list[int]]:
    """So many places in five parts, at random."""
    places = list(range(number))
    random.Random(seed).shuffle(places)  # noqa: S311
    return [places[fold::FOLDS] for fold in range(FOLDS)]


def cross_validated(
    values: NDArray[np.float64], smooth: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Each query's value by the weights, a row each, that are best by `smooth` on other parts."""
    held = np.zeros(values.shape[1])
    for out in folds(values.shape[1], seed):
        best = int(np.delete(smooth, out, axis=1).mean(axis=1).argmax())
        held[out] = values[best, out]
    return held
