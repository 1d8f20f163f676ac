"""A search that was asked, with all that its stages said, and the orders that follow from it."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import psycopg

from pgrerank.catalog import Reranker, call, fetch_one, read_texts
from pgrerank.evaluation.pools import Pool, blended, complete
from pgrerank.evaluation.traces import Trace
from pgrerank.evaluation.variant import Variant
from pgrerank.stages import STAGES
from pgrerank.studio.knobs import Knobs

__all__ = ["Asked", "Column", "Row", "Searches", "Share", "ask", "beginning"]

_KEPT = 100
_TITLE = 120
_SNIPPET = 240
Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Row:
    """A document in an order; `change` counts places won since the order before (below 0: lost).

    It is None in the first order, and for a document that the order before hasn't.
    """

    key: str
    rank: int
    score: float | None
    change: int | None
    title: str
    snippet: str


@dataclass(frozen=True)
class Column:
    """The order after a stage; `ms` and `scored` are those of the search that was asked."""

    stage: str
    title: str
    ms: float | None
    scored: int
    rows: list[Row]


@dataclass(frozen=True)
class Share:
    """What a stage adds to a document's total in the blend, and `reach`, the most of any."""

    stage: str
    value: float
    reach: float


@dataclass
class Asked:
    """A search by a reranker's own settings or by `knobs`, which it was asked with."""

    identifier: str
    reranker: Reranker
    query: str
    own: Knobs
    knobs: Knobs
    said: Mapping[str, Any]
    trace: Trace
    pool: Pool
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def is_more_than_stages(self) -> bool:
        """Whether more than the stages makes its order, which sliders then don't know of."""
        settings = self.reranker.settings
        return bool(
            settings["signals"]
            or settings["group_by"]
            or settings["diversity"]
            or (settings["duplicate_threshold"] or 1) < 1
        )

    @property
    def missing_stages(self) -> list[str]:
        """Stages that should have run and did not: a search that is degraded lacks some."""
        ran = self.trace.stages
        return [stage for stage in self.knobs.running if stage not in ran]

    def orders(self, knobs: Knobs) -> dict[str, list[str]]:
        """The order after each stage: as asked, or as other knobs make it of known scores."""
        if knobs == self.knobs:
            return {stage: self.trace.order(stage) for stage in self.trace.stages}
        sizes = knobs.known_sizes
        orders = self._pool_of(knobs).orders(sizes, knobs.weights)
        return {stage: keys[: sizes.candidates] for stage, keys in orders.items()}

    def unread(self, knobs: Knobs) -> list[int]:
        """Places in the pool that the cross-encoder would read by these knobs and has not."""
        if "cross_encoder" not in knobs.running or knobs == self.knobs:
            return []
        pool = self._pool_of(knobs)
        head = pool.before_head(knobs.known_sizes, knobs.weights)[: knobs.sizes["maxsim_top"]]
        read = np.isfinite(self.pool.scores["cross_encoder"][head])
        return [int(place) for place in head[~read]]

    def unknown(self, knobs: Knobs) -> list[str]:
        """What these knobs want that only another search can tell, in words."""
        wanted = []
        if knobs.sizes["candidates"] > self.knobs.sizes["candidates"]:
            found = self.knobs.sizes["candidates"]
            wanted.append(f"recall found {found} candidates, not {knobs.sizes['candidates']}")
        if knobs.sizes.get("maxsim_bit_top", 0) > self.knobs.sizes.get("maxsim_bit_top", 0):
            scored = self.knobs.sizes["maxsim_bit_top"]
            wanted.append(f"MaxSim scored {scored}, not {knobs.sizes['maxsim_bit_top']}")
        asked = self.knobs.running
        wanted += [
            f"{STAGES[stage].label} has not run"
            for stage in knobs.running
            if stage not in asked and stage != "cross_encoder"
        ]
        return wanted

    def read_more(self, connection: Connection, places: Iterable[int]) -> None:
        """Have the cross-encoder score documents of the pool; raises psycopg.Error if it can't."""
        variant = Variant(self.reranker.name, self.reranker.generation)
        queries, pools = {"": self.query}, {"": self.pool}
        complete(connection, variant, queries, pools, {"": places}, lambda _done, _total: None)

    def read_titles(self, connection: Connection, keys: Iterable[str]) -> None:
        """Read the texts of documents that aren't known yet."""
        missing = [key for key in keys if key not in self.texts]
        if missing:
            generation = self.reranker.generation
            self.texts |= read_texts(connection, self.reranker.name, missing, generation)

    def columns(self, orders: Mapping[str, Sequence[str]], shown: int) -> list[Column]:
        """The first documents of each order; their texts must have been read."""
        before: dict[str, int] = {}
        made: list[Column] = []
        for stage, keys in orders.items():
            rows = [self._row(stage, key, rank, before) for rank, key in enumerate(keys[:shown], 1)]
            scored = int(np.isfinite(self.pool.scores[stage]).sum())
            title = STAGES[stage].order if made else STAGES[stage].label
            made.append(Column(stage, title, self.trace.times.get(stage), scored, rows))
            before = {key: rank for rank, key in enumerate(keys, 1)}
        return made

    def score(self, stage: str, key: str) -> float | None:
        """A stage's score of a document; None where it has none."""
        value = float(self.pool.scores[stage][self.pool.keys.index(key)])
        return value if np.isfinite(value) else None

    def shares(self, knobs: Knobs, key: str) -> list[Share]:
        """What each stage adds to a document's total among those that the last one scored."""
        place, scores = self.pool.keys.index(key), self.pool.scores
        stages = [s for s, weight in knobs.weights.items() if weight and s in self.trace.stages]
        stages = [stage for stage in stages if np.isfinite(scores[stage][place])]
        if not stages:
            return []
        head = np.flatnonzero(np.isfinite(scores[stages[-1]]))
        [at] = np.flatnonzero(head == place)
        parts = {s: blended({s: scores[s][head]}, knobs.weights) for s in stages}
        reach = max(float(np.abs(part).max()) for part in parts.values()) or 1.0
        return [Share(s, float(part[at]), reach) for s, part in parts.items()]

    def title(self, key: str) -> tuple[str, str]:
        """The beginning of a document's text, and some of what follows."""
        return beginning(self.texts.get(key, ""))

    def _row(self, stage: str, key: str, rank: int, before: Mapping[str, int]) -> Row:
        change = before[key] - rank if key in before else None
        return Row(key, rank, self.score(stage, key), change, *self.title(key))

    def _pool_of(self, knobs: Knobs) -> Pool:
        """The pool without the scores of stages that are left out."""
        running = knobs.running
        if not any(STAGES[stage].is_leg for stage in running):
            running = [*(stage for stage in STAGES if STAGES[stage].is_leg), *running]
        return Pool(
            self.pool.keys,
            {
                stage: values if stage in running else np.full_like(values, np.nan)
                for stage, values in self.pool.scores.items()
            },
        )


def ask(connection: Connection, reranker: Reranker, query: str, own: Knobs, knobs: Knobs) -> Asked:
    """Search within the reranker's own time, and keep all that was said.

    Raises psycopg.Error as the search does.
    """
    settings = knobs.variant(own, reranker.name).settings | {"timeout": None, "strict": False}
    arguments = {"reranker": reranker.name, "query": query, **settings}
    [said] = fetch_one(call(connection, "trace", arguments))
    trace = Trace.from_json(said)
    pool = Pool(list(trace.keys), {stage: trace.scores[stage].copy() for stage in STAGES})
    return Asked(secrets.token_urlsafe(9), reranker, query, own, knobs, said, trace, pool)


class Searches:
    """The searches that were asked last, by their identifiers."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Asked] = OrderedDict()
        self._lock = Lock()

    def keep(self, asked: Asked) -> None:
        """Keep a search, and forget the oldest of too many."""
        with self._lock:
            self._kept[asked.identifier] = asked
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def get(self, identifier: str) -> Asked | None:
        """The search of that identifier; None where it is not kept any more."""
        return self._kept.get(identifier)


def beginning(text: str) -> tuple[str, str]:
    """A text's first line, and some of what follows."""
    first, _, rest = text.strip().partition("\n")
    return _clipped(first, _TITLE), _clipped(" ".join(rest.split()), _SNIPPET)


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
