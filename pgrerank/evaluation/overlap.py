"""Measures how alike two orders are, without judgements."""

from __future__ import annotations

from collections.abc import Sequence

PERSISTENCE = 0.9


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the longer one's keys that both have, in any order; 1 where both are empty."""
    longer = max(len(one), len(other))
    return len(set(one) & set(other)) / longer if longer else 1.0


def rank_biased_overlap(one: Sequence[str], other: Sequence[str], p: float = PERSISTENCE) -> float:
    """Extrapolated rank-biased overlap, from 0 (nothing in common) to 1 (the same order).

    A reader goes on from each rank to the next with probability `p`; how much the orders agree
    down to a rank counts by how likely it is read, and beyond the last rank they are taken to agree
    as much as there. Keys occur once. RBO_EXT for lists that may differ in length, equation 32 of
    Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010.
    """
    short, long = sorted((one, other), key=len)
    if not short:
        return float(not long)
    seen_short, seen_long = set[str](), set[str]()
    common, common_at_short, total = 0, 0, 0.0
    for depth, key in enumerate(long, 1):
        if depth <= len(short):
            seen_short.add(short[depth - 1])
            common += short[depth - 1] in seen_long
        common += key in seen_short
        seen_long.add(key)
        if depth <= len(short):
            common_at_short = common
        beyond = common_at_short * max(0, depth - len(short)) / len(short)
        total += (common + beyond) / depth * p**depth
    tail = (common - common_at_short) / len(long) + common_at_short / len(short)
    return (1 - p) / p * total + tail * p ** len(long)
