"""How far a stage reads a head before it stops: sql/92_early_exit.sql's rule, on known scores.

Arrays are float64, over the head in the order in which it is read; a score is NaN where the stage
has none of a document that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_head"]

Scores = NDArray[np.float64]


def read_head(
    standing: Scores, scores: Scores, weight: float | None, top_k: int, early_exit: float
) -> Scores:
    """Read a head as far as a search does; returns totals of those read, which come first.

    `standing` is what the earlier stages say, `weight` the stage's in the blend; None where it
    overrules them. Stops when fewer than `early_exit` unread documents are expected in `top_k`.
    """
    slices = list(_slices(top_k, len(scores)))
    is_decided = weight and _expected_to_turn(standing, top_k, weight) < early_exit / 2
    if is_decided and len(slices) > 1:
        return np.array([])
    for until in slices:
        head = _expected(standing, scores[:until])
        totals, spreads = head.scores, head.spreads
        if weight is not None:
            unit = weight / head.deviation if head.deviation else 0.0
            totals = standing + unit * (head.scores - np.nanmean(head.scores))
            spreads = weight / (head.deviation or weight) * head.spreads
        if _expected_to_enter(totals, spreads, top_k) < early_exit:
            break
    return totals[:until].astype(np.float32).astype(np.float64)


def _slices(top_k: int, size: int) -> Iterator[int]:
    """How far down slices end."""
    until = max(8, math.ceil(1.2 * top_k))
    while until < size:
        yield until
        until += math.ceil(until / 4)
    yield size


@dataclass(frozen=True)
class _Head:
    """Scores, those expected of documents not read among them; their deviation.

    `spreads` are deviations of those not read, which are last, from what is expected of them.
    """

    scores: Scores
    deviation: float
    spreads: Scores


def _expected(standing: Scores, read: Scores) -> _Head:
    """Draw the line of least squares through what was read, and expect the rest to lie on it."""
    known = np.isfinite(read)
    number = int(known.sum())
    if number == 0:
        return _Head(np.full(len(standing), math.nan), 0.0, np.zeros(len(standing) - len(read)))
    x, y = standing[: len(read)][known], read[known]
    dx, dy = x - x.mean(), y - y.mean()
    sxx, sxy, syy = float(dx @ dx), float(dx @ dy), float(dy @ dy)
    slope = max(0.0, sxy / sxx) if sxx > 0 else 0.0
    variance = max(0.0, syy - slope * sxy) / max(number - 2, 1)
    apart = standing[len(read) :] - x.mean()
    scores = np.concatenate([read, y.mean() + slope * apart])
    variances = variance * (1 + 1 / number + (apart**2 / sxx if sxx > 0 else 0 * apart))
    whole = float(np.nanvar(scores)) + variance * len(apart) / int(np.isfinite(scores).sum())
    return _Head(scores, math.sqrt(whole), np.sqrt(variances))


def _normal_share(z: Scores) -> Scores:
    """The share of a standard normal distribution below z (Page, Applied Statistics 26, 1977)."""
    share: Scores = 1 / (1 + np.exp(-np.clip(z * (1.5976 + 0.070566 * z * z), -700, 700)))
    return share


def _expected_to_enter(totals: Scores, spreads: Scores, top_k: int) -> float:
    """How many of the unread, which have spreads, are expected to pass the last of top_k."""
    read = totals[: len(totals) - len(spreads)]
    best = np.sort(read[np.isfinite(read)])[::-1]
    if len(best) < top_k:
        return float(len(spreads))
    above = totals[len(read) :] - best[top_k - 1]
    shares = _normal_share(above / np.where(spreads > 0, spreads, 1.0))
    return float(np.where(spreads > 0, shares, above > 0).sum())


def _expected_to_turn(standing: Scores, top_k: int, weight: float) -> float:
    """How many pairs, one of them in top_k, scores that know nothing of the standing turn round."""
    apart = standing[None, :] - standing[:top_k, None]
    shares = _normal_share(apart / (weight * math.sqrt(2)))
    return float(np.triu(shares, 1).sum())
