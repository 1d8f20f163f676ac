"""Cutting (query, document) pairs to a cross-encoder's window, and joining the windows' scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pgrerank.errors import ModelError
from pgrerank.models.steps import Input, Prepared
from pgrerank.models.windows import Cutter, Window, without_surrogates

Pair = tuple[str, str]


class CutPair(NamedTuple):
    """A pair's windows, and how many its query and its document have."""

    windows: list[Pair]
    tokens: list[int]
    shape: tuple[int, int]


def prepare_pairs(
    pairs: Sequence[Pair],
    cutter: Cutter,
    room: int,
    make: Callable[[Sequence[Pair], Sequence[int]], list[Input]],
    most: int | None,
) -> list[Prepared]:
    """Prepare pairs, and cut those that are too long.

    A query is too long beyond half of ``room``, and a pair beyond ``most`` tokens. ``make`` makes
    the inputs of pairs, of which it is told the tokens besides special ones. Where it can't count
    before that, ``most`` is None, and all pairs are measured first.
    """
    pairs = [(without_surrogates(query), without_surrogates(text)) for query, text in pairs]
    found: dict[int, Prepared] = {}
    if most is not None:
        queries = _cut_queries(pairs, cutter, room)
        whole = [place for place, (query, _) in enumerate(pairs) if len(queries[query]) == 1]
        made = make([pairs[place] for place in whole], [0] * len(whole))
        for place, one in zip(whole, made, strict=True):
            if one.tokens <= most:
                found[place] = Prepared([one], (1, 1))
    beyond = [place for place in range(len(pairs)) if place not in found]
    for place, cut in zip(beyond, cut_pairs([pairs[p] for p in beyond], cutter, room), strict=True):
        found[place] = Prepared(make(cut.windows, cut.tokens), cut.shape)
    return [found[place] for place in range(len(pairs))]


def join_scores(
    name: str, items: Sequence[Prepared], outputs: Sequence[Sequence[float]]
) -> list[float]:
    """Give a pair the mean over its query's windows of the maximum over its document's.

    It is what MaxSim does with token vectors: a maximum over the document, and all of the query
    counts. Raises ModelError for NaN and infinity.
    """
    scores = [
        own[0]
        if len(own) == 1
        else np.array(own, np.float32).reshape(item.shape).max(axis=1).mean().item()
        for item, own in zip(items, outputs, strict=True)
    ]
    finite = np.isfinite(scores)
    if not finite.all():
        index = int(np.argmin(finite))
        raise ModelError(f"model {name}: pair {index} gave {scores[index]}, not a score")
    return scores


def cut_pairs(pairs: Sequence[Pair], cutter: Cutter, room: int) -> list[CutPair]:
    """Cut queries to half of ``room`` tokens at most, and documents to what each query leaves."""
    queries = _cut_queries(pairs, cutter, room)
    documents = sorted({document for _, document in pairs})
    tokenised = dict(zip(documents, cutter.tokenise(documents), strict=True))
    done = []
    for query, document in pairs:
        asked = queries[query]
        # One room for all windows of a query, so that they meet the same windows of the document.
        read = cutter.cut(tokenised[document], room - max(window.tokens for window in asked))
        both = [(q, d) for q in asked for d in read]
        done.append(
            CutPair(
                [(q.text, d.text) for q, d in both],
                [q.tokens + d.tokens for q, d in both],
                (len(asked), len(read)),
            )
        )
    return done


def _cut_queries(pairs: Sequence[Pair], cutter: Cutter, room: int) -> dict[str, list[Window]]:
    queries = sorted({query for query, _ in pairs})
    return {
        query: cutter.cut(tokenised, room // 2)
        for query, tokenised in zip(queries, cutter.tokenise(queries), strict=True)
    }
