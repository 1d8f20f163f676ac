"""What smaller sizes or a blend would make of candidates whose scores are known.

A stage's score of a document depends on nothing but the two, so an order by fewer candidates, a
smaller head or other weights needs no search: it is put together as `pgrerank._run` would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank.evaluation.traces import Progress, Trace
from pgrerank.evaluation.variant import Variant

__all__ = ["Pool", "blended", "complete", "pool_of"]

Scores = NDArray[np.float64]
_NOISE = 1e-12


@dataclass
class Pool:
    """A query's candidates in recall's order, with their scores; NaN for what is not known."""

    keys: list[str]
    recall: Scores
    maxsim: Scores
    cross_encoder: Scores

    def before_head(self, candidates: int, blend: Mapping[str, float] | None) -> NDArray[np.int64]:
        """Places of the first `candidates`, in the order that the cross-encoder's head is taken."""
        places = np.arange(min(candidates, len(self.keys)))
        scored = places[np.isfinite(self.maxsim[places])]
        if not len(scored):
            return places
        values = self.maxsim[scored]
        if blend is not None:
            values = blended({"recall": self.recall[scored], "maxsim": values}, blend)
        return np.concatenate([self._best(scored, values), np.setdiff1d(places, scored)])

    def order(
        self, candidates: int, maxsim_top: int, blend: Mapping[str, float] | None
    ) -> list[str]:
        """Keys, best first; with a `maxsim_top` of 0 the cross-encoder is left out."""
        places = self.before_head(candidates, blend)
        head = places[:maxsim_top]
        head = head[np.isfinite(self.cross_encoder[head])]
        values = self.cross_encoder[head]
        if blend is not None and len(head):
            parts = {stage: getattr(self, stage)[head] for stage in ("recall", "maxsim")}
            values = blended({**parts, "cross_encoder": values}, blend)
        rest = places[~np.isin(places, head)]
        return [self.keys[place] for place in (*self._best(head, values), *rest)]

    def _best(self, places: NDArray[np.int64], values: Scores) -> NDArray[np.int64]:
        """By value, the highest first; by key where they are equal, as the database does."""
        keys = np.array([self.keys[place] for place in places], dtype=str)
        return places[np.lexsort((keys, -values))]


def blended(scores: Mapping[str, Scores], weights: Mapping[str, float]) -> Scores:
    """The weighted sum of scores, each less its mean and divided by its standard deviation.

    The arrays are parallel; NaN adds nothing, as does a stage whose scores are all the same
    (Montague and Aslam, CIKM 2001: zero-mean, unit-variance). What `pgrerank._blended` computes.
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
    scored = dict(zip(known.keys, known.scores["cross_encoder"].tolist(), strict=True))
    return Pool(
        keys,
        wide.scores["recall"][by_rank],
        wide.scores["maxsim"][by_rank],
        np.array([scored.get(key, np.nan) for key in keys], np.float64),
    )


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
        missing = [place for place in sorted(places) if np.isnan(pool.cross_encoder[place])]
        for start in range(0, len(missing), 1000):
            part = missing[start : start + 1000]
            scores = _score(connection, variant, queries[query], [pool.keys[p] for p in part])
            pool.cross_encoder[part] = [scores.get(pool.keys[p], np.nan) for p in part]
        on_progress(number, len(wanted))


def _score(
    connection: psycopg.Connection[Any], variant: Variant, query: str, keys: list[str]
) -> dict[str, float]:
    rows = connection.execute(
        "SELECT key, cross_encoder_score FROM pgrerank.explain_search(%s, %s, top_k => %s,"
        " keys => %s, maxsim_top => %s, stages => '{cross_encoder}', generation => %s,"
        " timeout => %s::interval, strict => true, alignments => false)",
        (variant.reranker, query, len(keys), keys, len(keys), variant.generation, variant.timeout),
    ).fetchall()
    return dict(rows)
