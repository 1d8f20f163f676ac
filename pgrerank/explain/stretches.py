"""Cuts a document's text into pieces, each as hot as it is close to the query."""

from __future__ import annotations

from typing import NamedTuple

from pgrerank.explain.explanation import Alignment, Explanation

__all__ = ["Answer", "Heat", "Stretch", "answers", "outside", "stretches"]


class Heat:
    """One scale for all documents of an explanation, so that a document that is none stays pale."""

    def __init__(self, explanation: Explanation) -> None:
        values = [
            heat
            for document in explanation["documents"]
            for heat in (document["alignment"] or {"heat": []})["heat"]
        ]
        self.least, self.most = min(values, default=0.0), max(values, default=0.0)

    def level(self, heat: float, levels: int) -> int:
        """Round a heat to one of so many levels, from 0."""
        share = (heat - self.least) / ((self.most - self.least) or 1)
        return max(0, min(int(share * levels), levels - 1))


class Stretch(NamedTuple):
    """A piece of a document's text; `heat` is None between tokens.

    `closest` is the index of the query's token that it is closest to; `answers` those of the
    query's tokens that it is the best answer to: they make up the score.
    """

    text: str
    heat: float | None = None
    closest: int = 0
    answers: tuple[int, ...] = ()


def stretches(text: str, alignment: Alignment) -> list[Stretch]:
    """The whole text in pieces, tokens and what is between them.

    Tokens that share characters, such as the bytes of one, are one piece, as hot as the hottest.
    """
    pieces: list[Stretch] = []
    at = start = 0
    for index, span in enumerate(alignment["spans"]):
        if span is None:
            continue
        token = _stretch(alignment, index, text[span[0] : span[1]])
        if pieces and span[0] < at:
            end = max(at, span[1])
            pieces[-1] = _joined(pieces[-1], token, text[start:end])
            at = end
            continue
        if span[0] > at:
            pieces.append(Stretch(text[at : span[0]]))
        pieces.append(token)
        start, at = span
    return [*pieces, Stretch(text[at:])] if at < len(text) else pieces


def outside(alignment: Alignment) -> list[Stretch]:
    """The tokens that are no part of the text: prompts and special ones."""
    return [
        _stretch(alignment, index, token)
        for index, (token, span) in enumerate(
            zip(alignment["tokens"], alignment["spans"], strict=True)
        )
        if span is None
    ]


class Answer(NamedTuple):
    """A token of the query, the document's token that answers it best, and their product."""

    asked: str
    token: str
    score: float


def answers(alignment: Alignment) -> list[Answer]:
    """List the answers to the query's tokens, in their order."""
    return [
        Answer(asked, alignment["tokens"][best], score)
        for asked, best, score in zip(
            alignment["query"], alignment["best"], alignment["scores"], strict=False
        )
    ]


def _stretch(alignment: Alignment, index: int, text: str) -> Stretch:
    answered = tuple(at for at, best in enumerate(alignment["best"]) if best == index)
    return Stretch(text, alignment["heat"][index], alignment["heat_from"][index], answered)


def _joined(one: Stretch, other: Stretch, text: str) -> Stretch:
    hottest = max(one, other, key=lambda stretch: stretch.heat or 0)
    both = tuple(sorted({*one.answers, *other.answers}))
    return Stretch(text, hottest.heat, hottest.closest, both)
