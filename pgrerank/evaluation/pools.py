"""Computes the order of other sizes or blends from scores that are known.

A stage's score of a document depends on nothing but the two, so an order by fewer candidates, a
smaller head or other weights needs no search: it is put together as sql/90_pool.sql does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank.catalog import call_statement
from pgrerank.evaluation.early_exit import read_head
from pgrerank.evaluation.traces import Progress, SignalPart, Trace
from pgrerank.evaluation.variant import Variant
from pgrerank.stages import LEGS, STAGES

__all__ = [
    "STAGES_ALONE",
    "UNGROUPED",
    "Pool",
    "Sizes",
    "blended",
    "complete",
    "pool_of",
    "with_signals",
]

Scores = NDArray[np.float64]
UNGROUPED: dict[str, Any] = {"group_by": "", "diversity": 0.0, "duplicate_threshold": 1.0}
"""Arguments of a search that leave its order as the last stage made it."""
STAGES_ALONE: dict[str, Any] = {"signals": {}, **UNGROUPED}
"""Arguments of a search that leave its order to the stages: what is put together here is that."""

_NOISE = 1e-12
"""The share of the largest score below which a deviation counts as 0.

Scores are of Postgres's type real, so that the sums that stddev_pop makes in float8 are exact and
the deviation of equal ones is 0; NumPy rounds their mean.
"""


@dataclass(frozen=True)
class Sizes:
    """How many documents each leg of recall finds, and how many of the best so far a stage scores.

    A `maxsim_bit_top` of None has MaxSim score all; a `maxsim_top` of 0 leaves the cross-encoder
    out. For the first `top_k` it may stop reading before, by `early_exit`; 0 has it read all.
    """

    candidates: int
    maxsim_top: int
    maxsim_bit_top: int | None = None
    early_exit: float = 0.0
    top_k: int = 10

    def scored_by(self, stage: str) -> int:
        """How many of the best candidates so far the stage scores."""
        of_stage = {"maxsim": self.maxsim_bit_top, "cross_encoder": self.maxsim_top}.get(stage)
        return self.candidates if of_stage is None else min(of_stage, self.candidates)


@dataclass
class Pool:
    """A query's candidates, with their scores by stage; NaN for unknown ones.

    `signals` are what signals add to the score of each; None where there are none.
    """

    keys: list[str]
    scores: dict[str, Scores]
    signals: Scores | None = None

    def before_head(self, sizes: Sizes, blend: Mapping[str, float]) -> NDArray[np.int64]:
        """The candidates' places in the order whose head the cross-encoder reads."""
        return self._after("maxsim", sizes, blend)

    def order(self, sizes: Sizes, blend: Mapping[str, float]) -> list[str]:
        """Rank the candidates: keys, best first."""
        return [self.keys[place] for place in self._after("cross_encoder", sizes, blend)]

    def share_read(self, sizes: Sizes, blend: Mapping[str, float]) -> float:
        """The share of the head that the cross-encoder reads."""
        head = self.before_head(sizes, blend)[: sizes.maxsim_top]
        stages = [stage for stage in STAGES if stage in weighted(self.scores, blend)]
        return len(self._read(head, stages, sizes, blend)) / max(len(head), 1)

    def orders(self, sizes: Sizes, blend: Mapping[str, float]) -> dict[str, list[str]]:
        """Rank the candidates after each stage that runs: keys, best first."""
        return {
            stage: [self.keys[place] for place in places]
            for stage, places in self._standings(sizes, blend)
        }

    def _after(self, last: str, sizes: Sizes, blend: Mapping[str, float]) -> NDArray[np.int64]:
        """The candidates' places in the order after that stage, or the last one before it."""
        standing = np.array([], np.int64)
        for stage, places in self._standings(sizes, blend):
            if list(STAGES).index(stage) > list(STAGES).index(last):
                break
            standing = places
        return standing

    def _standings(
        self, sizes: Sizes, blend: Mapping[str, float]
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each stage that runs up to the cross-encoder, and the candidates' places after it.

        A stage ranks a head by its scores; the rest follows in its order before.
        """
        stages = [stage for stage in weighted(self.scores, blend) if stage != "listwise"]
        legs = [stage for stage in stages if STAGES[stage].is_leg]
        places = self._found(sizes.candidates, legs)
        for number, stage in enumerate(stages, 1):
            if stage in legs:
                places = self._fused(places, legs, blend) if number > 1 else places
                if number == len(legs):
                    places = self._with_signals(places, blend)
                yield stage, places
                continue
            head = places[: sizes.scored_by(stage)]
            until = stages[:number]
            if stage == "cross_encoder" and sizes.early_exit and len(head):
                values = self._read(head, until, sizes, blend)
                head = head[: len(values)]
            else:
                values = self._totals(head, until, blend)
            known = np.isfinite(self.scores[stage][head])
            places = self._first(self._best(head[known], values[known]), places)
            yield stage, places

    def _totals(
        self, head: NDArray[np.int64], stages: Sequence[str], blend: Mapping[str, float]
    ) -> Scores:
        """What the last of the stages makes of a head: its scores, or a blend up to it."""
        latest = self.scores[stages[-1]][head]
        known = np.isfinite(latest)
        weights = blend if STAGES[stages[-1]].is_blended else {}
        if self.signals is not None:
            weights = beside_signals(stages, weights)
        if weights and known.any():
            scored = head[known]
            added = None if self.signals is None else self.signals[scored]
            latest[known] = blended(
                {name: self.scores[name][scored] for name in stages}, weights, added
            )
        return latest

    def _with_signals(
        self, places: NDArray[np.int64], blend: Mapping[str, float]
    ) -> NDArray[np.int64]:
        """What recall made, in the order of its scores and signals (sql/93_signals.sql)."""
        if self.signals is None or not len(places):
            return places
        legs = [leg for leg in LEGS if leg in weighted(self.scores, blend)]
        scores = {leg: self.scores[leg][places] for leg in legs}
        if len(legs) > 1 and not any(blend.get(leg) for leg in legs):
            legs, blend = ["recall"], {}
            scores = {"recall": 1 / (60 + np.arange(1.0, len(places) + 1))}
        values = blended(scores, beside_signals(legs, blend), self.signals[places])
        return self._best(places, values)

    def _read(
        self,
        head: NDArray[np.int64],
        stages: Sequence[str],
        sizes: Sizes,
        blend: Mapping[str, float],
    ) -> Scores:
        """What the last of the stages makes of as much of a head as it reads."""
        *earlier, latest = stages
        standing = -np.arange(1.0, len(head) + 1)
        if blend:
            standing = blended({name: self.scores[name][head] for name in earlier}, blend)
        return read_head(
            standing,
            self.scores[latest][head],
            blend[latest] if blend else None,
            sizes.top_k,
            sizes.early_exit,
        )

    def _found(self, candidates: int, legs: Sequence[str]) -> NDArray[np.int64]:
        """The places of what recall's legs find, in the first one's order, then the second's."""
        ranked = {leg: self._ranked(leg) for leg in legs}
        heads = {
            leg: order[: min(candidates, self._matching(leg))] for leg, order in ranked.items()
        }
        found = np.unique(np.concatenate([*heads.values(), np.array([], np.int64)]))
        places = np.array([], np.int64)
        for leg in reversed(legs):
            places = np.concatenate([ranked[leg][np.isin(ranked[leg], found)], places])
        return places[np.sort(np.unique(places, return_index=True)[1])]

    def _fused(
        self, found: NDArray[np.int64], legs: Sequence[str], blend: Mapping[str, float]
    ) -> NDArray[np.int64]:
        """What recall's two legs find, in the order that they make together."""
        ranked = {
            leg: order[np.isin(order, found)] for leg in legs for order in [self._ranked(leg)]
        }
        both = ranked[legs[-1]]
        weights = {leg: blend[leg] for leg in legs if blend.get(leg)}
        if weights:
            values = blended({leg: self.scores[leg][both] for leg in legs}, weights)
        else:
            values = np.zeros(len(both))
            for leg in legs:
                rank = {place: number for number, place in enumerate(ranked[leg], 1)}
                values += [1 / (60 + rank[p]) if p in rank else 0.0 for p in both]
        return self._first(self._best(both, values), found)

    def _ranked(self, leg: str) -> NDArray[np.int64]:
        """The places that a leg has scores of, by these."""
        known = np.flatnonzero(np.isfinite(self.scores[leg]))
        return self._best(known, self.scores[leg][known])

    def _matching(self, leg: str) -> int:
        """How many candidates a leg finds by itself: none by words of which it has none."""
        scores = self.scores[leg]
        return int(np.isfinite(scores).sum() if leg == "dense" else (scores > 0).sum())

    @staticmethod
    def _first(places: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places, and then those others that are not among them."""
        return np.concatenate([places, others[~np.isin(others, places)]])

    def _best(self, places: NDArray[np.int64], values: Scores) -> NDArray[np.int64]:
        """Sort by value, the highest first; of equal ones the lower key first."""
        keys = np.array([self.keys[place] for place in places], dtype=str)
        return places[np.lexsort((keys, -values))]


def weighted(scores: Mapping[str, Scores], blend: Mapping[str, float]) -> list[str]:
    """The stages with scores that a call runs by this blend, as sql/94_call.sql has it."""
    known = [stage for stage in STAGES if np.isfinite(scores[stage]).any()]
    runs = {stage for stage in known if not blend or blend.get(stage)}
    if not runs & set(LEGS):
        runs |= set(LEGS)
    if "maxsim" in runs:
        runs.add("maxsim_bit")
    return [stage for stage in known if stage in runs]


def beside_signals(stages: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of these stages beside signals: they add up to 1, or the last one has all."""
    own = {stage: weights[stage] for stage in stages if weights.get(stage)}
    whole = sum(own.values())
    return {stage: weight / whole for stage, weight in own.items()} or {stages[-1]: 1.0}


def blended(
    scores: Mapping[str, Scores], weights: Mapping[str, float], added: Scores | None = None
) -> Scores:
    """Blend scores: the weighted sum of each stage's z-scores, and what is added to it.

    The arrays are parallel. What has no score, no weight, or the same score for all, adds nothing
    (Montague and Aslam, CIKM 2001: zero-mean, unit-variance). sql/90_pool.sql computes the same, in
    type real: what is the same there is here.
    """
    total = np.zeros(len(next(iter(scores.values())))) if added is None else added.copy()
    for stage, values in scores.items():
        known = np.isfinite(values)
        if not weights.get(stage) or not known.any():
            continue
        centred = values - values[known].mean()
        deviation = values[known].std()
        if deviation > _NOISE * max(1.0, float(np.abs(values[known]).max())):
            total += np.where(known, weights[stage] * centred / deviation, 0.0)
    return total.astype(np.float32).astype(np.float64)


def pool_of(wide: Trace, known: Trace) -> Pool:
    """The candidates of a search without cross-encoder, and what another knows of that one."""
    keys = list(wide.keys)
    scores = {stage: wide.scores[stage].copy() for stage in STAGES}
    scored = dict(zip(known.keys, known.scores["cross_encoder"].tolist(), strict=True))
    scores["cross_encoder"] = np.array([scored.get(key, np.nan) for key in keys], np.float64)
    return Pool(keys, scores)


def with_signals(
    pool: Pool, said: tuple[Sequence[str], Sequence[SignalPart]], weights: Sequence[float]
) -> Pool:
    """The pool with what signals add by these weights, as they are said of keys."""
    if not any(weights):
        return pool
    keys, parts = said
    added = sum(
        (weight * part.scores for part, weight in zip(parts, weights, strict=True)),
        start=np.zeros(len(keys)),
    )
    known = dict(zip(keys, added.astype(np.float32).tolist(), strict=True))
    return replace(pool, signals=np.array([known.get(key, 0.0) for key in pool.keys]))


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
        "early_exit": 0.0,
        "stages": ["cross_encoder"],
        "generation": variant.generation,
        "timeout": variant.timeout,
        "strict": True,
        "alignments": False,
        **STAGES_ALONE,
    }
    statement, values = call_statement(
        "explain_search", arguments, select="key, cross_encoder_score"
    )
    rows = connection.execute(statement, values).fetchall()
    return {key: score for key, score in rows if score is not None}
