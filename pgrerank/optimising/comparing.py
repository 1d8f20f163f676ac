"""Scores the same pairs by the original and the optimised model, and takes the time of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgrerank.errors import extra
from pgrerank.evaluation import Comparison
from pgrerank.evaluation.significance import compare_runs
from pgrerank.judgements import Qrels
from pgrerank.models import Reranker
from pgrerank.optimising.groups import Group, Progress

Scores = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Scored:
    """Scores of the original and the optimised model by group, and the seconds that each took."""

    groups: Sequence[Group]
    scores: tuple[Scores, Scores]
    seconds: tuple[float, float]

    @property
    def pairs(self) -> int:
        """How many pairs each has scored."""
        return sum(len(group.texts) for group in self.groups)

    @property
    def speeds(self) -> tuple[float, float]:
        """Pairs that each scored in a second."""
        before, after = self.seconds
        return self.pairs / before, self.pairs / after

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of all scores; 0 where either model gives but one score."""
        with extra("evaluation", "comparing"):
            from scipy.stats import spearmanr
        before, after = (np.concatenate(scores) for scores in self.scores)
        if np.ptp(before) == 0 or np.ptp(after) == 0:
            return 0.0
        return float(spearmanr(before, after).statistic)

    @property
    def difference(self) -> float:
        """The largest difference of a pair's scores."""
        before, after = (np.concatenate(scores) for scores in self.scores)
        return float(np.abs(after - before).max())

    @property
    def spread(self) -> float:
        """How far apart the original's scores are."""
        return float(np.ptp(np.concatenate(self.scores[0])))

    def measure(self, qrels: Qrels) -> Comparison:
        """Compare nDCG@10 of both models' orders, by a paired randomisation test."""
        runs = [
            {
                group.identifier: [group.keys[place] for place in np.argsort(-own, kind="stable")]
                for group, own in zip(self.groups, scores, strict=True)
            }
            for scores in self.scores
        ]
        return compare_runs(qrels, *runs)


def score_side_by_side(
    original: Reranker, optimised: Reranker, groups: Sequence[Group], on_progress: Progress
) -> Scored:
    """Score all groups by both models in turn, so that what else the machine does meets both."""
    models = (original, optimised)
    work = [[(group.query, text) for text in group.texts] for group in groups]
    total = sum(map(len, work))
    scores: tuple[Scores, Scores] = ([], [])
    seconds = [0.0, 0.0]
    done = 0
    for model in models:
        model.score(max(work, key=len))  # the first call sets up what later ones find ready
    for place, pairs in enumerate(work):
        for turn in (0, 1) if place % 2 else (1, 0):
            began = time.perf_counter()
            scores[turn].append(models[turn].score(pairs))
            seconds[turn] += time.perf_counter() - began
        done += len(pairs)
        on_progress(done, total)
    return Scored(groups, scores, (seconds[0], seconds[1]))
