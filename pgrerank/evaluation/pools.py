"""Computes the order of other sizes or blends from scores that are known.

A stage's score of a document depends on nothing but the two, so an order by fewer candidates, a
smaller head or other weights needs no search: it is put together as sql/90_pool.sql does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank.catalog import call_statement
from pgrerank.evaluation.traces import Progress, Trace
from pgrerank.evaluation.variant import Variant
from pgrerank.stages import STAGES

__all__ = ["Pool", "Sizes", "blended", "complete", "pool_of"]

Scores = NDArray[np.float64]
_NOISE = 1e-12
"""The share of the largest score below which a deviation counts as 0.

Scores are of Postgres's type real, so that the sums that stddev_pop makes in float8 are exact and
the deviation of equal ones is 0; NumPy rounds their mean.
"""


@dataclass(frozen=True)
class Sizes:
    """How many documents recall returns, and of how many of the best so far a stage takes care.

    A `maxsim_bit_top` of None has MaxSim score all; a `maxsim_top` of 0 leaves the cross-encoder
    out.
    """

    candidates: int
    maxsim_top: int
    maxsim_bit_top: int | None = None

    def scored_by(self, stage: str) -> int | None:
        """How many of the best candidates so far the stage scores; None for all."""
        return {"maxsim": self.maxsim_bit_top, "cross_encoder": self.maxsim_top}.get(stage)


@dataclass
class Pool:
    """A query's candidates in recall's order, with their scores by stage; NaN for unknown ones."""

    keys: list[str]
    scores: dict[str, Scores]

    def before_head(self, sizes: Sizes, blend: Mapping[str, float]) -> NDArray[np.int64]:
        """The candidates' places in the order whose head the cross-encoder reads."""
        return self._after("maxsim", sizes, blend)

    def order(self, sizes: Sizes, blend: Mapping[str, float]) -> list[str]:
        """Rank the candidates: keys, best first."""
        return [self.keys[place] for place in self._after("cross_encoder", sizes, blend)]

    def _after(self, last: str, sizes: Sizes, blend: Mapping[str, float]) -> NDArray[np.int64]:
        """Rank the head by the stage's scores; the rest follows in its order before."""
        places = np.arange(min(sizes.candidates, len(self.keys)))
        stages = list(STAGES)
        for stage in stages[1 : stages.index(last) + 1]:
            head = places[: sizes.scored_by(stage)]
            scored = head[np.isfinite(self.scores[stage][head])]
            values = self.scores[stage][scored]
            if blend and STAGES[stage].is_blended and len(scored):
                until = stages[: stages.index(stage) + 1]
                values = blended({name: self.scores[name][scored] for name in until}, blend)
            rest = places[~np.isin(places, scored)]
            places = np.concatenate([self._best(scored, values), rest])
        return places

    def _best(self, places: NDArray[np.int64], values: Scores) -> NDArray[np.int64]:
        """Sort by value, the highest first; of equal ones the lower key first."""
        keys = np.array([self.keys[place] for place in places], dtype=str)
        return places[np.lexsort((keys, -values))]


def blended(scores: Mapping[str, Scores], weights: Mapping[str, float]) -> Scores:
    """Blend scores: the weighted sum of each stage's z-scores.

    The arrays are parallel. What has no score, no weight, or the same score for all, adds nothing
    (Montague and Aslam, CIKM 2001: zero-mean, unit-variance). sql/90_pool.sql computes the same.
    """
    total = np.zeros(len(next(iter(scores.values()))))
    for stage, values in scores.items():
        known = np.isfinite(values)
        if not weights.get(stage) or not known.any():
            continue
        centred = values - values[known].mean()
        deviation = values[known].std()
        if deviation > _NOISE * max(1.0, float(np.abs(values[known]).max())):
            total += np.where(known, weights[stage] * centred / deviation, 0.0)
    return total


def pool_of(wide: Trace, known: Trace) -> Pool:
    """The candidates of a search without cross-encoder, and what another knows of that one."""
    by_rank = np.argsort(wide.ranks["recall"])
    keys = [wide.keys[place] for place in by_rank]
    scores = {stage: wide.scores[stage][by_rank] for stage in STAGES}
    scored = dict(zip(known.keys, known.scores["cross_encoder"].tolist(), strict=True))
    scores["cross_encoder"] = np.array([scored.get(key, np.nan) for key in keys], np.float64)
    return Pool(keys, scores)


def complete(
    connection: psycopg.Connection[Any],
    variant: Variant,
    queries: Mapping[str, str],
    pools: Mapping[str, Pool],
    wanted: Mapping[str, Iterable[int]],
    on_progress: Progress,
) -> None:
    """Have the cross-encoder score the wanted places that it has not scored yet."""
    for number, (query, places) in enumerate(wanted.items(), 1):
        pool = pools[query]
        missing = [
            place for place in sorted(places) if np.isnan(pool.scores["cross_encoder"][place])
        ]
        for start in range(0, len(missing), 1000):
            part = missing[start : start + 1000]
            scores = _score(
                connection, variant, queries[query], [pool.keys[place] for place in part]
            )
            found = [scores.get(pool.keys[place], np.nan) for place in part]
            pool.scores["cross_encoder"][part] = found
        on_progress(number, len(wanted))


def _score(
    connection: psycopg.Connection[Any], variant: Variant, query: str, keys: list[str]
) -> dict[str, float]:
    arguments = {
        "reranker": variant.reranker,
        "query": query,
        "top_k": len(keys),
        "keys": keys,
        "maxsim_top": len(keys),
        "stages": ["cross_encoder"],
        "generation": variant.generation,
        "timeout": variant.timeout,
        "strict": True,
        "alignments": False,
    }
    statement, values = call_statement(
        "explain_search", arguments, select="key, cross_encoder_score"
    )
    rows = connection.execute(statement, values).fetchall()
    return {key: score for key, score in rows if score is not None}
