"""Finds the stretch of text that each token vector stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.models.spec import Span
from pgrerank.models.windows import Cutter, Tokenised, Window


class Row(NamedTuple):
    """What a model read of a window: token ids of all places, and which have a token vector."""

    ids: NDArray[np.int64]
    kept: NDArray[np.bool_]


def read_text(
    cutter: Cutter, prompt: str, windows: Sequence[Window], rows: Sequence[Row]
) -> tuple[list[str], list[Span | None]]:
    """Give the kept tokens of a text's windows as strings, and their places in the whole text.

    A token that is no part of the text (of the prompt, special, query expansion) is spelt as the
    tokenizer spells it, and has no place.
    """
    texts: list[str] = []
    spans: list[Span | None] = []
    begin = 0
    for window, row in zip(windows, rows, strict=True):
        found = _places(cutter, prompt, window.text, row.ids.tolist())
        for place in np.flatnonzero(row.kept).tolist():
            span = found.get(place)
            texts.append(window.text[slice(*span)] if span else cutter.spell(int(row.ids[place])))
            spans.append((begin + span[0], begin + span[1]) if span else None)
        begin += len(window.text)
    return texts, spans


def _places(cutter: Cutter, prompt: str, text: str, ids: list[int]) -> dict[int, Span]:
    """Spans in a window's text by the places of its tokens among ``ids``.

    Its tokens are looked for together with the prompt's, as a tokenizer may join the two at the
    seam; and alone, as a chat template puts the prompt somewhere else.
    """
    for before in dict.fromkeys((prompt, "")):
        [tokenised] = cutter.tokenise([before + text])
        first = _find(ids, tokenised.ids)
        if first is not None:
            spans = ((first + at, span) for at, span in enumerate(_spans(tokenised, len(before))))
            return {place: span for place, span in spans if span is not None}
    return {}


def _find(ids: list[int], wanted: list[int]) -> int | None:
    starts = range(len(ids) - len(wanted) + 1)
    return next((at for at in starts if ids[at : at + len(wanted)] == wanted), None)


def _spans(tokenised: Tokenised, skipped: int) -> list[Span | None]:
    """Spans without surrounding space, counted from ``skipped`` on; None for what is before it."""
    spans: list[Span | None] = []
    for begin, end in tokenised.offsets:
        begin = max(begin, skipped)
        stretch = tokenised.text[begin:end]
        bare = stretch.strip() or stretch
        begin += stretch.find(bare)
        spans.append((begin - skipped, begin - skipped + len(bare)) if bare else None)
    return spans
