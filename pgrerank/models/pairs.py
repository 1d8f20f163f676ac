"""Cutting (query, document) pairs to a cross-encoder's window, and joining the windows' scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.models.windows import Cutter


class CutPairs(NamedTuple):
    """Windows of all pairs in one list; ``shapes`` are a pair's query and document windows."""

    windows: list[tuple[str, str]]
    shapes: list[tuple[int, int]]

    def join(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give a pair the mean over its query's windows of the maximum over its document's.

        ``scores`` has shape [windows], the answer [pairs]. It is what MaxSim does with token
        vectors: a maximum over the document, and all of the query counts.
        """
        joined = np.empty(len(self.shapes), np.float32)
        begin = 0
        for index, shape in enumerate(self.shapes):
            end = begin + shape[0] * shape[1]
            joined[index] = scores[begin:end].reshape(shape).max(axis=1).mean()
            begin = end
        return joined


def cut_pairs(pairs: Sequence[tuple[str, str]], cutter: Cutter, room: int) -> CutPairs:
    """Cut queries to half of ``room`` tokens at most, and documents to what each query leaves."""
    queries = sorted({query for query, _ in pairs})
    documents = sorted({document for _, document in pairs})
    cut_queries = {
        query: cutter.cut(tokenised, room // 2)
        for query, tokenised in zip(queries, cutter.tokenise(queries), strict=True)
    }
    tokenised = dict(zip(documents, cutter.tokenise(documents), strict=True))
    done = CutPairs([], [])
    for query, document in pairs:
        asked = cut_queries[query]
        # One room for all windows of a query, so that they meet the same windows of the document.
        read = cutter.cut(tokenised[document], room - max(window.tokens for window in asked))
        done.windows.extend((q.text, d.text) for q in asked for d in read)
        done.shapes.append((len(asked), len(read)))
    return done
