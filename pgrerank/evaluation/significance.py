"""Tests whether a difference between two runs is more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pgrerank.errors import SettingsError, extra
from pgrerank.evaluation.measures import measure_queries
from pgrerank.judgements import Qrels, Run

MEASURE = "nDCG@10"
"""What one model is compared with another by."""

RESAMPLES = 9_999
MAX_P = 0.05
"""A gain is taken for one when it is put down to chance no more often."""


def is_worth_it(gain: float, p: float) -> bool:
    """Whether a gain is one, and not put down to chance."""
    return gain > 0 and p <= MAX_P


class Comparison(NamedTuple):
    """A measure's means over the same queries, and how likely their difference is by chance.

    `p` is two-sided. `better` and `worse` count the queries that gained and lost.
    """

    before: float
    after: float
    p: float
    better: int
    worse: int
    queries: int

    @property
    def gain(self) -> float:
        """What the measure's mean gained."""
        return self.after - self.before

    @property
    def figures(self) -> dict[str, float]:
        """Means, p and counts, rounded as they are stored with a registered model."""
        return {
            "before": round(self.before, 4),
            "after": round(self.after, 4),
            "p": round(self.p, 4),
            "queries": self.queries,
            "better": self.better,
            "worse": self.worse,
        }


def compare_runs(qrels: Qrels, before: Run, after: Run) -> Comparison:
    """Compare nDCG@10 of two runs, by a paired randomisation test."""
    return compare(*(measure_queries(qrels, run, [MEASURE])[MEASURE] for run in (before, after)))


def compare(
    before: Mapping[str, float], after: Mapping[str, float], *, seed: int = 0
) -> Comparison:
    """Compare a measure of two runs by query: a paired randomisation test of the means.

    The signs of the queries' differences are drawn at random 9,999 times, or all combinations
    where there are fewer (Smucker, Allan and Carterette, CIKM 2007). Raises SettingsError where the
    queries aren't the same, or there are none.
    """
    if set(before) != set(after) or not before:
        raise SettingsError(
            f"runs of {len(before)} and {len(after)} queries can't be compared: the same queries,"
            " at least one, are expected"
        )
    queries = sorted(before)
    first = np.array([before[query] for query in queries])
    second = np.array([after[query] for query in queries])
    difference = second - first
    return Comparison(
        float(first.mean()),
        float(second.mean()),
        _p(difference, seed),
        int((difference > 0).sum()),
        int((difference < 0).sum()),
        len(queries),
    )


def _p(difference: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int) -> float:
    with extra("evaluation", "comparing"):
        from scipy.stats import permutation_test
    changed = difference[difference != 0]
    if len(changed) < 2:
        return 1.0
    tested = permutation_test(
        (changed,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=seed
    )
    return float(tested.pvalue)
