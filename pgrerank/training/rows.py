"""Triples as the rows that trainers read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from pgrerank.errors import TriplesError
from pgrerank.training.triples import Triple


def pairs(triples: Sequence[Triple], negatives: int, *, seed: int) -> Dataset:
    """(query, document, label): each positive, and up to `negatives` of the negatives for each.

    The label is 1 or 0.
    """
    rows: list[dict[str, Any]] = []
    for triple in triples:
        rows += [{"query": triple.query, "document": text, "label": 1.0} for text in triple.pos]
        chosen = triple.neg[: negatives * len(triple.pos)]
        rows += [{"query": triple.query, "document": text, "label": 0.0} for text in chosen]
    random.Random(seed).shuffle(rows)  # noqa: S311
    if not any(row["label"] == 0 for row in rows):
        raise TriplesError("no triple has a negative, which this loss needs: mine some first")
    return Dataset.from_list(rows)


def groups(triples: Sequence[Triple], negatives: int, *, seed: int) -> Dataset:
    """(query, positive, negative_1, …): a row for each positive, with the same number of negatives.

    Where a triple has fewer, positives of other queries take the places, at random.
    """
    chance = random.Random(seed)  # noqa: S311
    others = [text for triple in triples for text in triple.pos]
    wide = min(negatives, max(len(triple.neg) for triple in triples))
    rows = []
    for triple in triples:
        for place, positive in enumerate(triple.pos):
            # Each positive starts elsewhere in the list, so that more of the negatives are seen.
            start = place * wide
            chosen = list(dict.fromkeys((*triple.neg[start:], *triple.neg[:start])))[:wide]
            while len(chosen) < wide and (other := chance.choice(others)):
                if other not in triple.pos or len(set(others)) <= len(triple.pos):
                    chosen.append(other)
            row = {"query": triple.query, "positive": positive}
            rows.append(row | {f"negative_{i}": text for i, text in enumerate(chosen, 1)})
    chance.shuffle(rows)
    return Dataset.from_list(rows)


def scored_groups(triples: Sequence[Triple], negatives: int, *, seed: int) -> Dataset:
    """(query, positive, negative_1, …, label): label holds the teacher's score of each text.

    Raises TriplesError where scores or as many negatives are missing.
    """
    rows = []
    for triple in triples:
        if triple.pos_scores is None or triple.neg_scores is None:
            raise TriplesError(
                f"query {triple.query[:60]!r} has no pos_scores and neg_scores, which distillation"
                " learns from: mine by a reranker with a cross-encoder, or choose another loss"
            )
        if len(triple.neg) < negatives:
            continue
        for positive, score in zip(triple.pos, triple.pos_scores, strict=True):
            row: dict[str, Any] = {"query": triple.query, "positive": positive}
            row |= {f"negative_{i}": text for i, text in enumerate(triple.neg[:negatives], 1)}
            rows.append(row | {"label": [score, *triple.neg_scores[:negatives]]})
    if not rows:
        raise TriplesError(f"no triple has {negatives} negatives: lower --negatives or mine more")
    random.Random(seed).shuffle(rows)  # noqa: S311
    return Dataset.from_list(rows)


FORMS = {"pairs": pairs, "groups": groups, "scored_groups": scored_groups}


def samples(triples: Sequence[Triple]) -> list[dict[str, Any]]:
    """What sentence-transformers' reranking evaluators read, of triples with negatives."""
    return [
        {"query": triple.query, "positive": list(triple.pos), "negative": list(triple.neg)}
        for triple in triples
        if triple.neg
    ]
