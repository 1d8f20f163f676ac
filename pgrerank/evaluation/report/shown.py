"""Chooses the queries that the page shows in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pgrerank.evaluation.report.contrast import Contrast, Gain, final
from pgrerank.evaluation.report.numbers import clipped, spoken
from pgrerank.evaluation.report.tables import Runs
from pgrerank.evaluation.result import QueryFound, Shown

__all__ = ["Column", "Document", "Group", "Query", "groups"]

WORST, LOWEST, BEST = 60, 40, 20
"""Queries shown in full at most, by group: with them the page stays below a few megabytes."""

_TEXT_COLUMNS = 140
_QUERY_COLUMNS = 1000


class Document(NamedTuple):
    """A line of an order: `mark` is relevant, partly, not or unjudged; `moved` since the last."""

    mark: str
    key: str
    text: str
    moved: str


class Column(NamedTuple):
    """An order's quality and head."""

    title: str
    quality: float
    documents: list[Document]


class Query(NamedTuple):
    """A query with its orders side by side."""

    id: str
    text: str
    relevant: int
    change: float
    after: float
    columns: list[Column]


class Group(NamedTuple):
    """Queries under a heading; `of` is how many there are of their kind."""

    title: str
    queries: list[Query]
    of: int


def groups(runs: Runs, contrast: Contrast) -> list[Group]:
    """Group the queries that lost most, end lowest and gained most; none comes twice."""
    what = "B" if len(runs) > 1 else spoken(contrast.after)
    lowest = sorted(contrast.gains, key=lambda gain: (gain.after, gain.found["id"]))
    if contrast.before is None:
        kinds = [(f"Lowest after {what}", lowest, WORST + LOWEST)]
    else:
        worse, better = contrast.worse, contrast.better
        named = [*worse[:WORST], *better[:BEST]]
        rest = [gain for gain in lowest if gain not in named]
        kinds = [
            (f"Made worse by {what}", worse, WORST),
            (f"Lowest after {what}, of the others", rest, LOWEST),
            (f"Made better by {what}", better, BEST),
        ]
    most = _most_relevant(runs)
    return [
        Group(title, [_query(runs, gain, most) for gain in gains[:limit]], len(gains))
        for title, gains, limit in kinds
        if gains
    ]


def _most_relevant(runs: Runs) -> int:
    """The highest relevance of all: where it is above 1, 1 is partly relevant."""
    return max(
        (
            document["relevance"] or 0
            for run in runs.values()
            for query in run["per_query"]
            for order in query["top"].values()
            for document in order
        ),
        default=0,
    )


def _query(runs: Runs, gain: Gain, most: int) -> Query:
    finding = gain.found
    if gain.other is None:
        [run] = runs.values()
        orders = [(order["name"], order["name"], finding) for order in run["orders"]]
    else:
        orders = _last_orders(runs, finding, gain.other)
    columns: list[Column] = []
    before: Sequence[Shown] | None = None
    for title, name, source in orders:
        top = source["top"].get(name, [])
        documents = [_document(place, shown, before, most) for place, shown in enumerate(top)]
        columns.append(Column(title, source["quality"][name], documents))
        before = top
    text = clipped(finding["query"], _QUERY_COLUMNS) or "(an empty query)"
    return Query(finding["id"], text, finding["relevant"], gain.change, gain.after, columns)


def _last_orders(
    runs: Runs, first: QueryFound, second: QueryFound
) -> list[tuple[str, str, QueryFound]]:
    return [
        (f"{run}: {final(evaluation)}", final(evaluation), source)
        for (run, evaluation), source in zip(runs.items(), (first, second), strict=True)
    ]


def _document(place: int, shown: Shown, before: Sequence[Shown] | None, most: int) -> Document:
    text = clipped(shown["text"], _TEXT_COLUMNS)
    return Document(
        _mark(shown["relevance"], most), shown["key"], text, _moved(place, shown["key"], before)
    )


def _mark(relevance: int | None, most: int) -> str:
    if relevance is None:
        return "unjudged"
    if relevance <= 0:
        return "not"
    return "partly" if relevance == 1 < most else "relevant"


def _moved(place: int, key: str, before: Sequence[Shown] | None) -> str:
    """Ranks gained or lost against the order before, of what is shown of it."""
    if not before:
        return ""
    keys = [shown["key"] for shown in before]
    if key not in keys:
        return "new"
    by = keys.index(key) - place
    return f"▲{by}" if by > 0 else f"▼{-by}" if by < 0 else ""
