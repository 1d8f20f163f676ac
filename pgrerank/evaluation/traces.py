"""Searches traced: the scores and times of every stage, for all candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank.catalog import call, fetch_one
from pgrerank.evaluation.variant import Variant
from pgrerank.stages import STAGES

__all__ = ["Progress", "SignalPart", "Trace", "ask", "ask_one"]

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(frozen=True)
class SignalPart:
    """One signal of a search: the `number`th of its name, counted from 1.

    `scores` are what it would add to each key's score with a weight of 1.
    """

    name: str
    number: int
    weight: float
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """One search: keys in the last order; scores (float64, NaN for none) and ranks by stage.

    They are those of the whole pool; `candidates` is how many a search returns at most.
    `relevance` is parallel to the keys, NaN where it is not known; `passages` are where in their
    texts those shown begin and end, by the first keys; `units` are by what a stage's scores are
    divided to be compared between queries, 1 where it has none; `signals` are in the order of their
    names. `times` are milliseconds by stage, with `encode_query` and `total`;
    `reason` says why it is degraded, if it is.
    """

    candidates: int
    keys: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]
    ranks: Mapping[str, NDArray[np.float64]]
    times: Mapping[str, float]
    relevance: NDArray[np.float64]
    units: Mapping[str, float]
    passages: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    signals: Sequence[SignalPart] = ()
    reason: str | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trace:
        """Make a trace of the JSON that `pgrerank.trace` returns."""
        nothing = [None] * len(value["keys"])
        return cls(
            value["candidates"],
            tuple(value["keys"]),
            {stage: np.array(value["scores"].get(stage, nothing), np.float64) for stage in STAGES},
            {stage: np.array(value["ranks"].get(stage, nothing), np.float64) for stage in STAGES},
            {stage: float(spent) for stage, spent in value["times"].items()},
            np.array(value["relevance"], np.float64),
            value["units"],
            {key: (start, end) for key, (start, end) in value["passages"].items()},
            [
                SignalPart(
                    *(one["name"], one["number"], one["weight"]),
                    np.array(one["scores"], np.float64),
                )
                for one in value["signals"]
            ],
            value["reason"],
        )

    @property
    def stages(self) -> list[str]:
        """The stages that ranked a candidate."""
        return [stage for stage in STAGES if np.isfinite(self.ranks[stage]).any()]

    def order(self, stage: str) -> list[str]:
        """Candidates after that stage; those that it left out follow as they stood before."""
        stages = list(STAGES)
        until = [self.ranks[name] for name in stages[: stages.index(stage) + 1]]
        by = [np.where(np.isnan(ranks), math.inf, ranks) for ranks in until]
        return [self.keys[place] for place in np.lexsort(by)[: self.candidates]]


def ask_one(
    connection: psycopg.Connection[Any], variant: Variant, query: str, **changed: Any
) -> Trace:
    """Search by a variant, with `changed` in place of its own settings."""
    arguments = {"reranker": variant.reranker, "query": query, **variant.settings, **changed}
    return Trace.from_json(fetch_one(call(connection, "trace", arguments))[0])


def ask(
    connection: psycopg.Connection[Any],
    variant: Variant,
    queries: Mapping[str, str],
    *,
    on_progress: Progress = lambda _done, _total: None,
    **changed: Any,
) -> dict[str, Trace]:
    """Search every query, one SQL call each, so that its times are a search's own.

    Returns traces by query id.
    """
    traces = {}
    for number, (identifier, query) in enumerate(queries.items(), 1):
        traces[identifier] = ask_one(connection, variant, query, **changed)
        on_progress(number, len(queries))
    return traces


def spread(items: Sequence[str], number: int) -> list[str]:
    """Take so many of the items, evenly spread over the sequence."""
    if len(items) <= number:
        return list(items)
    steps = max(1, number - 1)
    return [items[round(place * (len(items) - 1) / steps)] for place in range(number)]
