"""Quality and time by the sizes of the stages, and the sizes that are worth their time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import psycopg

from pgrerank.evaluation.measures import measure_queries
from pgrerank.evaluation.pools import Pool, Sizes
from pgrerank.evaluation.result import DepthPoint, Recommendation
from pgrerank.evaluation.significance import Comparison, compare
from pgrerank.evaluation.traces import ask_one, spread
from pgrerank.evaluation.variant import Variant
from pgrerank.judgements import Qrels

__all__ = [
    "EARLY_EXITS",
    "KEPT",
    "calibrate",
    "grid",
    "quality_by_size",
    "recommend",
    "time_by_size",
]

KEPT = 0.95
"""Share of the best gain that a recommended size keeps at least."""
LOSS = 0.002
"""Of the measure, what stopping early may cost at most."""
LEAST_QUERIES = 50
"""Queries below which no loss of that size can be seen."""
TIMED = 5
"""Queries that each size is timed with."""
EARLY_EXITS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""The values of `early_exit` that are tried."""
_SIZES = (5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10000)


def grid(present: int, most: int, *, least: int = 0) -> list[int]:
    """Choose the sizes to measure: round ones up to the largest, that one and the present one."""
    return sorted({size for size in _SIZES if least < size < most} | {present, most})


def quality_by_size(
    pools: Mapping[str, Pool],
    qrels: Qrels,
    sizes: Sequence[Sizes],
    blend: Mapping[str, float],
    measure: str,
) -> list[dict[str, float]]:
    """Measure each query for each of the sizes."""
    return [
        measure_queries(
            qrels, {query: pool.order(size, blend) for query, pool in pools.items()}, [measure]
        )[measure]
        for size in sizes
    ]


def time_by_size(
    connection: psycopg.Connection[Any],
    variant: Variant,
    queries: Mapping[str, str],
    stages: Sequence[str],
    sizes: Sequence[Sizes],
) -> Iterator[float]:
    """Median milliseconds of a whole call of these stages, for each of the sizes."""
    some = [queries[query] for query in spread(list(queries), TIMED)]
    for size in sizes:
        asked = [stage for stage in stages if size.maxsim_top or stage != "cross_encoder"]
        spent = [
            ask_one(
                connection,
                variant,
                query,
                candidates=size.candidates,
                maxsim_bit_top=size.maxsim_bit_top,
                maxsim_top=size.maxsim_top or None,
                stages=asked,
            ).times["total"]
            for query in some
        ]
        yield median(spent)


def recommend(
    setting: str,
    points: Sequence[DepthPoint],
    qualities: Mapping[int, Mapping[str, float]],
    present: int,
    measure: str,
) -> Recommendation | None:
    """Find the smallest size that keeps nearly all of what the best one gains over the smallest.

    `qualities` are each query's by size; by them the size is compared with the present one. None
    where there is nothing to choose from.
    """
    if len(points) < 2:
        return None
    base, deepest = points[0]["quality"], points[-1]
    best = max(point["quality"] for point in points)
    gain = best - base
    chosen = next(p for p in points if p["quality"] - base >= KEPT * gain)
    kept = (chosen["quality"] - base) / gain if gain > 0 else 1.0
    share = chosen["ms"] / deepest["ms"] if deepest["ms"] else 1.0
    compared = compare(qualities[present], qualities[chosen["size"]])
    return Recommendation(
        setting=setting,
        value=chosen["size"],
        gain_kept=kept,
        time_share=share,
        gain=compared.gain,
        p=compared.p,
        text=_text(setting, chosen, deepest, measure, (gain, kept, share))
        + ("" if chosen["size"] == present else _against(present, compared)),
    )


def calibrate(
    pools: Mapping[str, Pool],
    qrels: Qrels,
    sizes: Sizes,
    blend: Mapping[str, float],
    measure: str,
) -> Recommendation | None:
    """Find the `early_exit` that reads least and loses no more than LOSS by reading less.

    `sizes` have the present one. None where there are too few queries to tell, or nothing to gain.
    """
    if len(pools) < LEAST_QUERIES:
        return None
    tried = [replace(sizes, early_exit=value) for value in (*EARLY_EXITS, sizes.early_exit)]
    qualities = quality_by_size(pools, qrels, tried, blend, measure)
    whole, present = fmean(qualities[0].values()), qualities[-1]
    chosen = max(
        (size.early_exit, place)
        for place, size in enumerate(tried[:-1])
        if fmean(qualities[place].values()) >= whole - LOSS
    )[1]
    value, quality = tried[chosen].early_exit, fmean(qualities[chosen].values())
    if value == sizes.early_exit:
        return None
    read = fmean(pool.share_read(tried[chosen], blend) for pool in pools.values())
    compared = compare(present, qualities[chosen])
    return Recommendation(
        setting="early_exit",
        value=value,
        gain_kept=quality / whole if whole else 1.0,
        time_share=read,
        gain=compared.gain,
        p=compared.p,
        text=f"early_exit {value:g} has the cross-encoder read {read:.0%} of the head, at"
        f" {measure} {quality - whole:+.4f} against all of it"
        + _against(sizes.early_exit, compared),
    )


def _against(present: float, compared: Comparison) -> str:
    return f"; against the present {present:g}: {compared.gain:+.4f} (p = {compared.p:.3f})"


def _text(
    setting: str,
    chosen: DepthPoint,
    deepest: DepthPoint,
    measure: str,
    shares: tuple[float, float, float],
) -> str:
    gain, kept, share = shares
    if setting == "maxsim_top" and chosen["size"] == 0:
        return f"leave the cross-encoder out: no maxsim_top up to {deepest['size']} gains anything"
    if gain <= 0:
        return f"{setting} {chosen['size']} is enough: more gain nothing"
    return (
        f"{setting} {chosen['size']} keeps {kept:.0%} of the gain ({measure} +{gain:.4f}) at"
        f" {share:.0%} of the time of {deepest['size']}"
    )


def points(
    sizes: Sequence[int], qualities: Sequence[Mapping[str, float]], times: Sequence[float]
) -> list[DepthPoint]:
    """Pair qualities and times by size."""
    return [
        DepthPoint(size=size, quality=fmean(quality.values()), ms=spent)
        for size, quality, spent in zip(sizes, qualities, times, strict=True)
    ]
