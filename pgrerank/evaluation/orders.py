"""The order after each stage, measured: over all queries, and against the stage before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pgrerank.evaluation.measures import measure_queries
from pgrerank.evaluation.result import Milliseconds, Order
from pgrerank.evaluation.significance import MAX_P, compare
from pgrerank.evaluation.traces import Trace
from pgrerank.judgements import Qrels, Run
from pgrerank.stages import STAGES

__all__ = ["MEASURES", "Measured", "measure_orders", "percentiles", "returned", "warnings"]

MEASURES = ("nDCG@10", "RR@10", "AP", "R@100", "Judged@10")
"""The first is the one that orders are compared by."""

_TELLING = 50
"""On fewer queries nearly every gain may be chance, and to say so of a stage tells nothing."""

NAMES = {
    "exact": "dense, exact",
    **{name: stage.order for name, stage in STAGES.items()},
    "chosen": "+ groups, diversity",
}
"""What orders are called: that of exact dense recall, by stage, and of what is chosen after."""

STAGE_PARTS = {"exact": ("dense",), "chosen": ("groups", "diversity")}
"""Which times are those of an order that isn't a stage's."""

Measured = dict[str, dict[str, dict[str, float]]]
"""By order's name, measure and query."""


def measure_orders(
    qrels: Qrels,
    traces: Mapping[str, Trace],
    exact: Mapping[str, Trace] | None = None,
    chosen: Mapping[str, Trace] | None = None,
    measures: Sequence[str] = MEASURES,
) -> tuple[list[Order], Measured]:
    """Measure the order after every stage that ran, and those of exact recall and what is chosen.

    Returns a row an order, first to last, and each query's values. Raises SettingsError for an
    unknown measure.
    """
    stages = [stage for stage in STAGES if any(stage in trace.stages for trace in traces.values())]
    runs: dict[str, Run] = {"exact": _run(exact, "dense")} if exact else {}
    runs |= {stage: _run(traces, stage) for stage in stages}
    runs |= {"chosen": returned(chosen)} if chosen else {}
    measured = {NAMES[one]: measure_queries(qrels, run, measures) for one, run in runs.items()}
    rows: list[Order] = []
    for stage in runs:
        asked, parts = traces, STAGE_PARTS.get(stage, (stage,))
        if stage in STAGE_PARTS:
            asked = (exact if stage == "exact" else chosen) or {}
        rows.append(_row(stage, measured, measures, rows, [t.times for t in asked.values()], parts))
    return rows, measured


def returned(traces: Mapping[str, Trace]) -> Run:
    """What the searches return, groups and diversity included."""
    return {query: list(trace.keys[: trace.candidates]) for query, trace in traces.items()}


def _run(traces: Mapping[str, Trace], stage: str) -> Run:
    return {query: trace.order(stage) for query, trace in traces.items()}


def _row(
    name: str,
    measured: Measured,
    measures: Sequence[str],
    before: Sequence[Order],
    times: Sequence[Mapping[str, float]],
    parts: Sequence[str],
) -> Order:
    own = measured[NAMES[name]]
    all_parts = ["encode_query", *STAGES, *STAGE_PARTS["chosen"]]
    until = all_parts[: all_parts.index(parts[-1]) + 1]
    row = Order(
        name=NAMES[name],
        stage="exact_recall" if name == "exact" else name,
        measures={one: _mean(own[one].values()) for one in measures},
        stage_ms=percentiles(sum(spent.get(one, 0.0) for one in parts) for spent in times),
        total_ms=percentiles(sum(spent.get(one, 0.0) for one in until) for spent in times),
        against=None,
        gain=None,
        p=None,
        better=None,
        worse=None,
    )
    if before:
        found = compare(measured[before[-1]["name"]][measures[0]], own[measures[0]])
        row["against"] = before[-1]["name"]
        row["gain"], row["p"] = found.gain, found.p
        row["better"], row["worse"] = found.better, found.worse
    return row


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def percentiles(values: Iterable[float]) -> Milliseconds:
    """Median and 95th percentile; zeros for none."""
    listed = list(values) or [0.0]
    return Milliseconds(p50=float(np.percentile(listed, 50)), p95=float(np.percentile(listed, 95)))


def warnings(orders: Sequence[Order], measure: str, queries: int) -> list[str]:
    """Warn of stages that make the order worse, or gain no more than chance on many queries."""
    sentences = []
    for before, order in itertools.pairwise(orders):
        gain, p = order["gain"] or 0.0, order["p"] or 0.0
        if order["stage"] in ("dense", "chosen") or (gain >= 0 and p <= MAX_P):
            continue
        change = f"{measure} {before['measures'][measure]:.4f} before it"
        change += f", {order['measures'][measure]:.4f} after (p = {p:.3f})"
        if gain < 0:
            sentences.append(
                f"{order['name']} hurts: {change}, worse on {order['worse']} of {queries} queries"
                f" and better on {order['better']}: leave it out, or reweigh it (pgrerank tune)"
            )
        elif queries >= _TELLING:
            spent = f"{order['stage_ms']['p50']:.0f} ms"
            sentences.append(
                f"{order['name']} may gain nothing: {change}, for {spent} a call: judge more"
                " queries to know, or leave it out"
            )
    return sentences
