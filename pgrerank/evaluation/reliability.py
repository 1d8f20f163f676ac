"""How well relevance is calibrated: documents in bins by it, and the share that is relevant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from pgrerank.evaluation.result import Bin, Reliability
from pgrerank.evaluation.traces import Trace
from pgrerank.judgements import Qrels

__all__ = ["reliability", "reliability_of_searches"]

BINS = 10
RETURNED = 10
"""Documents of each search that count: as many as one returns by default."""


def reliability(relevance: ArrayLike, relevant: ArrayLike) -> Reliability:
    """Compare relevance (0 to 1) with what is relevant (0 or 1), in ten bins of equal width.

    The expected calibration error is the mean distance of the two over the bins, weighted by their
    documents (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599); the Brier score is the mean
    squared distance. Both are 0 for no documents.
    """
    predicted, observed = np.asarray(relevance, np.float64), np.asarray(relevant, np.float64)
    bins = []
    for number in range(BINS):
        inside = np.minimum((predicted * BINS).astype(int), BINS - 1) == number
        if inside.any():
            bins.append(
                Bin(
                    low=number / BINS,
                    documents=int(inside.sum()),
                    relevance=float(predicted[inside].mean()),
                    relevant=float(observed[inside].mean()),
                )
            )
    total = max(len(predicted), 1)
    return Reliability(
        documents=len(predicted),
        relevant=int(observed.sum()),
        ece=sum(b["documents"] * abs(b["relevance"] - b["relevant"]) for b in bins) / total,
        brier=float(((predicted - observed) ** 2).sum() / total),
        bins=bins,
    )


def reliability_of_searches(traces: Mapping[str, Trace], qrels: Qrels) -> Reliability | None:
    """Compare the relevance of what searches return with judgements; None where none is known.

    What is not judged counts as not relevant.
    """
    pairs = [
        (relevance, qrels[query].get(key, 0) > 0)
        for query, trace in traces.items()
        for key, relevance in zip(trace.keys[:RETURNED], trace.relevance, strict=False)
        if np.isfinite(relevance)
    ]
    return reliability(*zip(*pairs, strict=True)) if pairs else None
