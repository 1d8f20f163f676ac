"""The search for weights of signals that rank judged queries best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgrerank.evaluation.blending import check_queries, cross_validated, folds
from pgrerank.evaluation.result import SignalsFound
from pgrerank.evaluation.significance import Comparison, compare, is_worth_it
from pgrerank.evaluation.traces import SignalPart

__all__ = ["find_signals"]

_STEPS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
WEIGHTS = (*(-step for step in reversed(_STEPS)), 0.0, *_STEPS)
"""The weights that are tried of each signal; the stages have 1 together."""

Weights = tuple[float, ...]
Values = NDArray[np.float64]
Measure = Callable[[Weights], Values]
"""The measure's value of each query by the signals' weights, one each."""


def find_signals(
    parts: Sequence[SignalPart], signals: Mapping[str, Any], measure: Measure, *, seed: int = 1
) -> SignalsFound:
    """Choose the signals that gain by more than chance, one after another, and their weights.

    The next one is that which gains most, by queries that its weight was not found on, and is
    chosen if that gain is worth it, however many were tried; all others have no weight. The weights
    are then found on four of five parts of the queries and measured on the fifth. `signals` is the
    setting, of which the result has a copy with these weights. Raises EvaluationError where there
    are fewer than ten queries.
    """
    measured: dict[Weights, Values] = {}

    def values(weights: Weights) -> Values:
        if weights not in measured:
            measured[weights] = measure(weights)
        return measured[weights]

    present = values(tuple(part.weight for part in parts))
    check_queries(len(present))
    chosen = _chosen(values, len(parts), seed)
    weights = _climb(values, len(parts), chosen, slice(None))
    held = np.zeros(len(present))
    for out in folds(len(present), seed):
        others = np.delete(np.arange(len(present)), out)
        held[out] = values(_climb(values, len(parts), chosen, others))[out]
    compared = _compared(present, held)
    return SignalsFound(
        signals=_with_weights(signals, parts, weights),
        weights={_label(part): weight for part, weight in zip(parts, weights, strict=True)},
        quality=compared.after,
        present=compared.before,
        p=compared.p,
    )


def _chosen(values: Measure, count: int, seed: int) -> list[int]:
    chosen: list[int] = []
    weights = (0.0,) * count
    while left := [place for place in range(count) if place not in chosen]:
        held = {
            place: cross_validated(*_along(values, weights, place, slice(None)), seed)
            for place in left
        }
        best = max(left, key=lambda place: held[place].mean())
        compared = _compared(values(weights), held[best])
        if not is_worth_it(compared.gain, compared.p * len(left)):
            break
        chosen.append(best)
        weights = _climb(values, count, chosen, slice(None))
    return chosen


def _climb(
    values: Measure, count: int, chosen: Sequence[int], queries: slice | NDArray[np.int64]
) -> Weights:
    """Find the weights of those chosen on some queries, each twice while the others stay."""
    weights = (0.0,) * count
    for place in (*chosen, *chosen):
        _, smooth = _along(values, weights, place, queries)
        weights = _replaced(weights, place, WEIGHTS[int(smooth.mean(axis=1).argmax())])
    return weights


def _along(
    values: Measure, weights: Weights, place: int, queries: slice | NDArray[np.int64]
) -> tuple[Values, Values]:
    """Each query's values by one signal's weight, and their means with the neighbours'."""
    found = np.array([values(_replaced(weights, place, one))[queries] for one in WEIGHTS])
    padded = np.concatenate([found[:1], found, found[-1:]])
    return found, (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def _replaced(weights: Weights, place: int, weight: float) -> Weights:
    return (*weights[:place], weight, *weights[place + 1 :])


def _compared(before: Values, after: Values) -> Comparison:
    return compare(*({str(n): float(v) for n, v in enumerate(one)} for one in (before, after)))


def _label(part: SignalPart) -> str:
    return part.name if part.number == 1 else f"{part.name} {part.number}"


def _with_weights(
    signals: Mapping[str, Any], parts: Sequence[SignalPart], weights: Weights
) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(signals))
    for part, weight in zip(parts, weights, strict=True):
        said = changed[part.name]
        signal = said[part.number - 1] if isinstance(said, list) else said
        signal["boost" if part.name == "boosts" or "boost" in signal else "weight"] = weight
    return changed
