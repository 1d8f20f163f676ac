"""Which sizes and which blend serve a reranker best, on judged queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from pgrerank.errors import EvaluationError
from pgrerank.evaluation.blending import find_weights, weights_to_try
from pgrerank.evaluation.depth import (
    grid,
    points,
    quality_by_size,
    recommend,
    time_by_size,
)
from pgrerank.evaluation.evaluate import Phase, Searched, quiet
from pgrerank.evaluation.orders import MAX_P
from pgrerank.evaluation.pools import Pool, complete, pool_of
from pgrerank.evaluation.result import DepthPoint, Evaluation
from pgrerank.evaluation.traces import Trace, ask

__all__ = ["apply", "tune"]

_BLENDED = ("recall", "maxsim", "cross_encoder")
Connection = psycopg.Connection[Any]


def tune(
    connection: Connection,
    searched: Searched,
    evaluation: Evaluation,
    *,
    max_candidates: int | None = None,
    max_maxsim_top: int | None = None,
    phase: Phase = quiet,
) -> None:
    """Add depth curves, recommendations and the best blend to an evaluation.

    Looks at up to `max_candidates` (by default 200, or what the reranker has if that is more) and
    `max_maxsim_top` (by default 50). Only what the searches did not score already is scored.
    """
    settings = searched.settings
    stages = [
        stage for stage in _BLENDED if any(stage in t.stages for t in searched.traces.values())
    ]
    widest = max(max_candidates or 200, settings["candidates"])
    deepest = max(max_maxsim_top or 50, settings["maxsim_top"])
    has_head = "cross_encoder" in stages
    sizes = {
        "candidates": [
            (size, settings["maxsim_top"] if has_head else 0)
            for size in grid(settings["candidates"], widest, least=9)
        ],
        "maxsim_top": [
            (settings["candidates"], size)
            for size in ([0, *grid(settings["maxsim_top"], deepest)] if has_head else [])
        ],
    }
    pools = _pools(connection, searched, stages, widest, phase)
    if has_head:
        wanted = _wanted(pools, [*sizes["candidates"], *sizes["maxsim_top"]], settings, stages)
        with phase("scoring what is missing") as progress:
            complete(
                connection, searched.variant, searched.judgements.queries, pools, wanted, progress
            )
    for setting, pairs in sizes.items():
        if pairs:
            _curve(connection, searched, evaluation, pools, stages, setting, pairs, phase)
    if len(stages) > 1:
        _blend(searched, evaluation, pools, stages)


def apply(connection: Connection, evaluation: Evaluation) -> dict[str, Any]:
    """Write what is recommended to the reranker; returns the settings written, maybe none."""
    chosen: dict[str, Any] = {
        one["setting"]: one["value"]
        for one in evaluation["recommendations"]
        if one["value"] and one["value"] != evaluation["settings"][one["setting"]]
    }
    blend = evaluation["blend"]
    if blend is not None and _is_worth_it(blend["cross_validated"] - blend["plain"], blend["p"]):
        chosen["blend"] = blend["weights"]
    if chosen:
        connection.execute(
            "SELECT pgrerank.alter_reranker(%s, candidates => %s, maxsim_top => %s, blend => %s)",
            (
                evaluation["reranker"],
                chosen.get("candidates"),
                chosen.get("maxsim_top"),
                Jsonb(chosen["blend"]) if "blend" in chosen else None,
            ),
        )
    return chosen


def _is_worth_it(gain: float, p: float) -> bool:
    return gain > 0 and p <= MAX_P


def _pools(
    connection: Connection,
    searched: Searched,
    stages: Sequence[str],
    candidates: int,
    phase: Phase,
) -> dict[str, Pool]:
    with phase(f"recalling {candidates}") as progress:
        wide: Mapping[str, Trace] = ask(
            connection,
            searched.variant,
            searched.judgements.queries,
            on_progress=progress,
            candidates=candidates,
            stages=[stage for stage in stages if stage != "cross_encoder"],
        )
    return {query: pool_of(trace, searched.traces[query]) for query, trace in wide.items()}


def _wanted(
    pools: Mapping[str, Pool],
    sizes: Sequence[tuple[int, int]],
    settings: Mapping[str, Any],
    stages: Sequence[str],
) -> dict[str, set[int]]:
    """Places whose scores some size or some weights ask for."""
    now = (settings["candidates"], settings["maxsim_top"])
    heads = [(*pair, settings["blend"]) for pair in sizes]
    heads += [(*now, weights) for weights in weights_to_try(stages)]
    return {
        query: {
            int(place)
            for candidates, maxsim_top, blend in heads
            for place in pool.before_head(candidates, blend)[:maxsim_top]
        }
        for query, pool in pools.items()
    }


def _curve(
    connection: Connection,
    searched: Searched,
    evaluation: Evaluation,
    pools: Mapping[str, Pool],
    stages: Sequence[str],
    setting: str,
    pairs: Sequence[tuple[int, int]],
    phase: Phase,
) -> None:
    measure = searched.measures[0]
    queries = searched.judgements.queries
    quality = quality_by_size(
        pools, searched.judgements.qrels, pairs, searched.settings["blend"], measure
    )
    times = []
    with phase(f"timing {setting}") as progress:
        for spent in time_by_size(connection, searched.variant, queries, stages, pairs):
            times.append(spent)
            progress(len(times), len(pairs))
    sizes = [pair[0 if setting == "candidates" else 1] for pair in pairs]
    found: list[DepthPoint] = points(sizes, list(quality), times)
    evaluation["depth"][setting] = found
    recommended = recommend(setting, found, measure)
    if recommended is not None:
        evaluation["recommendations"].append(recommended)


def _blend(
    searched: Searched,
    evaluation: Evaluation,
    pools: Mapping[str, Pool],
    stages: Sequence[str],
) -> None:
    settings = searched.settings
    now = (settings["candidates"], settings["maxsim_top"] if "cross_encoder" in stages else 0)
    try:
        evaluation["blend"] = find_weights(
            pools, searched.judgements.qrels, stages, now, searched.measures[0]
        )
    except EvaluationError as error:
        evaluation["warnings"].append(str(error))
