"""What searches find of documents with several passages, and whether by the right passage."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from pgrerank.evaluation.result import PassagesFound, Slice
from pgrerank.evaluation.traces import Trace
from pgrerank.judgements import Judgements

__all__ = ["is_within", "passages_found"]

FIRST = 10
"""Documents of each search that count: as many as one returns by default."""


def passages_found(
    judgements: Judgements,
    traces: Mapping[str, Trace],
    counts: Mapping[str, int],
    measured: Mapping[str, Mapping[str, float]],
) -> PassagesFound | None:
    """Tell queries by how many passages their relevant documents have; None if all have one.

    `counts` are the passages of judged documents and of those found, by key; `measured` has each
    measure by query.
    """
    several = {key for key, count in counts.items() if count > 1}
    if not several:
        return None
    found = {key for trace in traces.values() for key in trace.keys[:FIRST]}
    within = [
        is_within(trace.passages[key], stretches[key])
        for query, trace in traces.items()
        if (stretches := judgements.passages.get(query))
        for key in trace.keys[:FIRST]
        if key in stretches and key in trace.passages
    ]
    return PassagesFound(
        documents=len(found),
        several=len(found & several),
        slices=_slices(judgements, counts.keys(), several, measured),
        judged=len(within),
        within=sum(within),
    )


def is_within(passage: tuple[int, int], stretches: Sequence[tuple[int, int]]) -> bool:
    """Whether a passage has half of one of the stretches, or is half in one."""
    start, end = passage
    return any(
        min(end, after) - max(start, first) >= min(end - start, after - first) / 2
        for first, after in stretches
    )


def _slices(
    judgements: Judgements,
    known: Collection[str],
    several: Collection[str],
    measured: Mapping[str, Mapping[str, float]],
) -> list[Slice]:
    names: dict[str, list[str]] = {"one passage": [], "several passages": []}
    for query, documents in judgements.qrels.items():
        relevant = {key for key, relevance in documents.items() if relevance > 0 and key in known}
        if relevant:
            has_several = not relevant.isdisjoint(several)
            names["several passages" if has_several else "one passage"].append(query)
    return [
        Slice(
            name=name,
            queries=len(queries),
            measures={
                measure: fmean(by_query[query] for query in queries)
                for measure, by_query in measured.items()
            },
        )
        for name, queries in names.items()
        if queries
    ]
