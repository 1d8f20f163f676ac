"""Finds the sizes, the blend and the weights of signals that serve best, on judged queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank.catalog import call, read_reranker
from pgrerank.errors import EvaluationError
from pgrerank.evaluation.blending import find_weights, fixed_blends, weights_to_try
from pgrerank.evaluation.depth import (
    calibrate,
    grid,
    points,
    quality_by_size,
    recommend,
    time_by_size,
)
from pgrerank.evaluation.evaluate import Phase, Searched, possible_stages, silently
from pgrerank.evaluation.measures import measure_queries
from pgrerank.evaluation.pools import (
    STAGES_ALONE,
    UNGROUPED,
    Pool,
    Sizes,
    complete,
    pool_of,
    with_signals,
)
from pgrerank.evaluation.result import (
    BlendFound,
    DepthPoint,
    Evaluation,
    Recommendation,
    SignalsFound,
    Tuning,
)
from pgrerank.evaluation.signals import find_signals
from pgrerank.evaluation.significance import is_worth_it
from pgrerank.evaluation.traces import Progress, SignalPart, Trace, ask
from pgrerank.stages import STAGES

__all__ = ["apply", "tune"]

Connection = psycopg.Connection[Any]


def tune(
    connection: Connection,
    searched: Searched,
    *,
    max_candidates: int | None = None,
    max_maxsim_top: int | None = None,
    phase: Phase = silently,
) -> Tuning:
    """Find depth curves, the sizes that are worth their time, the best blend, signals' weights.

    Looks at up to `max_candidates` (by default 200, or what the reranker has if that is more) and
    `max_maxsim_top` (by default 50), with all stages that the reranker can run. Only what the
    searches did not score already is scored.
    """
    settings = searched.settings
    stages = possible_stages(settings, searched.variant)
    widest = max(max_candidates or 200, settings["candidates"])
    deepest = max(max_maxsim_top or 50, settings["maxsim_top"])
    present = Sizes(
        settings["candidates"],
        settings["maxsim_top"] if "cross_encoder" in stages else 0,
        settings["maxsim_bit_top"] if "maxsim_bit" in stages else None,
    )
    tuner = _Tuner(connection, searched, stages, present, phase)
    sizes = {
        "candidates": [
            replace(present, candidates=size) for size in grid(present.candidates, widest, least=9)
        ],
    }
    if "cross_encoder" in stages:
        depths = [0, *grid(present.maxsim_top, deepest)]
        sizes["maxsim_top"] = [replace(present, maxsim_top=size) for size in depths]
    pools = tuner.pools(widest, [size for some in sizes.values() for size in some])
    curves, recommended = {}, []
    for setting, some in sizes.items():
        curves[setting], qualities = tuner.curve(pools, setting, some)
        now = getattr(present, setting)
        recommended.append(
            recommend(setting, curves[setting], qualities, now, searched.measures[0])
        )
    if present.maxsim_top and settings["blend"].get("cross_encoder", 1):
        recommended.append(tuner.early_exit(pools))
    try:
        blend = tuner.blend(pools)
        signals = tuner.signals(pools, blend)
        warnings = []
    except EvaluationError as error:
        blend, signals, warnings = None, None, [str(error)]
    return Tuning(
        depth=curves,
        recommendations=[one for one in recommended if one is not None],
        blend=blend,
        signals=signals,
        warnings=warnings,
    )


def apply(connection: Connection, evaluation: Evaluation) -> dict[str, Any]:
    """Write what gains by more than chance to the reranker; returns the settings written."""
    tuning = evaluation["tuning"]
    if tuning is None:
        return {}
    chosen: dict[str, Any] = {
        one["setting"]: one["value"]
        for one in tuning["recommendations"]
        if one["setting"] == "early_exit" or (one["value"] and is_worth_it(one["gain"], one["p"]))
    }
    blend, signals = tuning["blend"], tuning["signals"]
    if blend is not None and _is_better(blend):
        chosen["blend"] = blend["weights"]
    if signals is not None and _is_better(signals):
        chosen["signals"] = signals["signals"]
    if chosen:
        call(connection, "alter_reranker", {"reranker": evaluation["reranker"], **chosen})
    return chosen


def _is_better(found: BlendFound | SignalsFound) -> bool:
    return is_worth_it(found["quality"] - found["present"], found["p"])


@dataclass(frozen=True)
class _Tuner:
    """What all parts of a tuning share: searches, stages that run, present sizes."""

    connection: Connection
    searched: Searched
    stages: Sequence[str]
    present: Sizes
    phase: Phase

    def pools(self, candidates: int, sizes: Sequence[Sizes]) -> dict[str, Pool]:
        """Complete each query's pool with the scores that any size or weights need."""
        with self.phase(f"recalling {candidates}") as progress:
            wide: Mapping[str, Trace] = ask(
                self.connection,
                self.searched.variant,
                self.searched.judgements.queries,
                on_progress=progress,
                candidates=candidates,
                # Of fewer candidates, other ones are the best by bits: MaxSim scores them all.
                maxsim_bit_top=None if self.present.maxsim_bit_top is None else candidates,
                stages=[stage for stage in self.stages if stage != "cross_encoder"],
                **STAGES_ALONE,
            )
        pools = {
            query: pool_of(trace, self.searched.traces[query]) for query, trace in wide.items()
        }
        with self.phase("scoring what is missing") as progress:
            self._complete(pools, self._heads(pools, sizes), progress)
        return pools

    def _complete(
        self,
        pools: Mapping[str, Pool],
        heads: Mapping[str, set[int]],
        progress: Progress = lambda _done, _total: None,
    ) -> None:
        """Have the cross-encoder, where it runs, score what it has not scored of these places."""
        if "cross_encoder" in self.stages:
            queries = self.searched.judgements.queries
            complete(self.connection, self.searched.variant, queries, pools, heads, progress)

    def _heads(self, pools: Mapping[str, Pool], sizes: Sequence[Sizes]) -> dict[str, set[int]]:
        """The places that the cross-encoder reads for any of the sizes or weights."""
        asked = [(size, self.searched.settings["blend"]) for size in sizes]
        tried = [*weights_to_try(self._blended), *fixed_blends(self._blended).values()]
        asked += [(self.present, weights) for weights in tried]
        return {
            query: {
                int(place)
                for size, blend in asked
                for place in pool.before_head(size, blend)[: size.maxsim_top]
            }
            for query, pool in pools.items()
        }

    @property
    def _blended(self) -> list[str]:
        return [stage for stage in self.stages if STAGES[stage].is_blended]

    def curve(
        self, pools: Mapping[str, Pool], setting: str, sizes: Sequence[Sizes]
    ) -> tuple[list[DepthPoint], dict[int, dict[str, float]]]:
        """Measure quality and time by one setting; returns means, and each query's by size."""
        searched = self.searched
        qualities = quality_by_size(
            pools,
            searched.judgements.qrels,
            sizes,
            searched.settings["blend"],
            searched.measures[0],
        )
        times = []
        with self.phase(f"timing {setting}") as progress:
            for spent in time_by_size(
                self.connection, searched.variant, searched.judgements.queries, self.stages, sizes
            ):
                times.append(spent)
                progress(len(times), len(sizes))
        numbers = [getattr(size, setting) for size in sizes]
        return points(numbers, qualities, times), dict(zip(numbers, qualities, strict=True))

    def early_exit(self, pools: Mapping[str, Pool]) -> Recommendation | None:
        """Calibrate when the cross-encoder stops reading, for searches at the present sizes."""
        reranker = read_reranker(self.connection, self.searched.variant.reranker)
        present = replace(self.present, early_exit=reranker.settings["early_exit"])
        return calibrate(
            pools,
            self.searched.judgements.qrels,
            present,
            self.searched.settings["blend"],
            self.searched.measures[0],
        )

    def blend(self, pools: Mapping[str, Pool]) -> BlendFound | None:
        """Find the best weights of the blended stages; None where there is one alone."""
        if len(self._blended) < 2:
            return None
        qrels, measure = self.searched.judgements.qrels, self.searched.measures[0]
        weights = self.searched.settings["blend"]
        return find_weights(pools, qrels, self._blended, self.present, measure, weights)

    def signals(self, pools: Mapping[str, Pool], blend: BlendFound | None) -> SignalsFound | None:
        """Find the weights of signals, beside the blend that is in use or takes over."""
        signals = self.searched.settings["signals"]
        if not signals:
            return None
        parts = self._signal_parts()
        weights = self.searched.settings["blend"]
        if blend is not None and _is_better(blend):
            weights = blend["weights"]
        qrels, name = self.searched.judgements.qrels, self.searched.measures[0]

        def measure(signal_weights: Sequence[float]) -> NDArray[np.float64]:
            run = {
                query: with_signals(pool, parts[query], signal_weights)
                for query, pool in pools.items()
            }
            top = self.present.maxsim_top
            heads = {
                query: set(pool.before_head(self.present, weights)[:top].tolist())
                for query, pool in run.items()
            }
            self._complete(run, heads)
            orders = {query: pool.order(self.present, weights) for query, pool in run.items()}
            found = measure_queries(qrels, orders, [name])[name]
            return np.array([found[query] for query in sorted(qrels)])

        with self.phase("weighing signals"):
            return find_signals(next(iter(parts.values()))[1], signals, measure)

    def _signal_parts(self) -> dict[str, tuple[Sequence[str], Sequence[SignalPart]]]:
        """What signals say of each query's candidates of the present size, by their keys."""
        with self.phase("reading signals") as progress:
            traces = ask(
                self.connection,
                self.searched.variant,
                self.searched.judgements.queries,
                on_progress=progress,
                stages=[stage for stage in self.stages if STAGES[stage].is_leg],
                **UNGROUPED,
            )
        return {query: (trace.keys, trace.signals) for query, trace in traces.items()}
