"""Searches with all their candidates: what every stage said of each, and how long it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from pgrerank.evaluation.variant import Variant

__all__ = ["STAGES", "Progress", "Trace", "ask", "ask_one"]

STAGES = ("recall", "maxsim_bit", "maxsim", "cross_encoder")
"""In the order in which they run."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

_TRACE = (
    "SELECT pgrerank._trace(%(reranker)s, %(query)s, %(candidates)s, %(maxsim_bit_top)s,"
    " %(maxsim_top)s, %(stages)s, %(recall)s, %(generation)s, %(blend)s, %(timeout)s)"
)


@dataclass(frozen=True)
class Trace:
    """One search: keys in the last order; scores (float64, NaN for none) and ranks by stage.

    `times` are milliseconds by stage, with `encode_query` and `total`; `reason` says why it is
    degraded, if it is.
    """

    keys: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]
    ranks: Mapping[str, NDArray[np.float64]]
    times: Mapping[str, float]
    reason: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trace:
        """As `pgrerank._trace` gives it; raises KeyError, TypeError or ValueError for another."""
        return cls(
            tuple(value["keys"]),
            {stage: np.array(value[f"{stage}_score"], np.float64) for stage in STAGES},
            {stage: np.array(value[f"{stage}_rank"], np.float64) for stage in STAGES},
            {stage: float(spent) for stage, spent in value["times"].items()},
            value["reason"],
        )

    @property
    def stages(self) -> list[str]:
        """Those that ranked a candidate."""
        return [stage for stage in STAGES if np.isfinite(self.ranks[stage]).any()]

    def order(self, stage: str) -> list[str]:
        """Keys after that stage; candidates that it left out follow as they stood before."""
        until = STAGES[: STAGES.index(stage) + 1]
        by = [np.where(np.isnan(self.ranks[one]), math.inf, self.ranks[one]) for one in until]
        return [self.keys[place] for place in np.lexsort(by)]


def ask_one(
    connection: psycopg.Connection[Any], variant: Variant, query: str, **changed: Any
) -> Trace:
    """Search by a variant, with `changed` in place of its own settings."""
    settings = {**variant.settings, "recall": "hnsw", **changed}
    settings["blend"] = None if settings["blend"] is None else Jsonb(settings["blend"])
    row = connection.execute(
        _TRACE, {"reranker": variant.reranker, "query": query, **settings}
    ).fetchone()
    assert row is not None
    return Trace.from_json(row[0])


def ask(
    connection: psycopg.Connection[Any],
    variant: Variant,
    queries: Mapping[str, str],
    *,
    on_progress: Progress = lambda _done, _total: None,
    **changed: Any,
) -> dict[str, Trace]:
    """Search every query, one SQL call each; returns traces by query id."""
    traces = {}
    for number, (identifier, query) in enumerate(queries.items(), 1):
        traces[identifier] = ask_one(connection, variant, query, **changed)
        on_progress(number, len(queries))
    return traces


def spread(items: Sequence[str], number: int) -> list[str]:
    """So many of them, evenly spread over the sequence."""
    if len(items) <= number:
        return list(items)
    return [items[round(place * (len(items) - 1) / (number - 1))] for place in range(number)]
