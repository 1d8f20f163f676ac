"""Where a text may be cut: between words, lines, sentences and paragraphs."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_CLOSING = "\"'”’»)]}」』）】〉》"
_WIDE_ENDS = "。！？｡"  # no space follows these
_ENDS = frozenset(".!?…" + _WIDE_ENDS)
_GAP = re.compile(
    rf"\s+|(?<=[{_WIDE_ENDS}])[{re.escape(_CLOSING)}]*(?![\s{re.escape(_CLOSING)}{_WIDE_ENDS}])"
)


class Level(IntEnum):
    """How good a place is for a cut; higher is better.

    The end of a line is worth less than that of a sentence, as many texts are wrapped.
    """

    WORD = 1
    LINE = 2
    SENTENCE = 3
    SENTENCE_AND_LINE = 4
    PARAGRAPH = 5


class Marks(NamedTuple):
    """The places where a text may be cut, in order; the first and the last are its ends.

    ``ends``: one after the last character of what comes before; ``starts``: the first character of
    what comes after; between them is white space. ``levels`` are :class:`Level` s.
    """

    ends: NDArray[np.int64]
    starts: NDArray[np.int64]
    levels: NDArray[np.int8]


def marks_of(text: str) -> Marks:
    """Find all places, of a text that is not blank."""
    begin, end = stripped(text, 0, len(text))
    gaps = [found.span() for found in _GAP.finditer(text, begin, end)]
    found = [(begin, begin, Level.PARAGRAPH)]
    found += [_mark(text, *gap) for gap in gaps if gap[1] < end]
    found.append((end, end, Level.PARAGRAPH))
    ends, starts, levels = zip(*found, strict=True)
    return Marks(np.array(ends), np.array(starts), np.array(levels, np.int8))


def stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    """A stretch without white space at its ends; an empty one if it is blank."""
    own = text[begin:end]
    return end - len(own.lstrip()), begin + max(len(own.rstrip()), len(own) - len(own.lstrip()))


def _mark(text: str, begin: int, end: int) -> tuple[int, int, Level]:
    """The place that a gap is: white space, or what closes a sentence that no space follows."""
    if not text[end - 1].isspace():
        return end, end, Level.SENTENCE
    lines = text.count("\n", begin, end)
    if lines > 1:
        return begin, end, Level.PARAGRAPH
    if _is_sentence(text, begin, end):
        return begin, end, Level.SENTENCE_AND_LINE if lines else Level.SENTENCE
    return begin, end, Level.LINE if lines else Level.WORD


def _is_sentence(text: str, end: int, start: int) -> bool:
    """Whether a sentence ends here and another starts there.

    None starts with a small letter, so that "e.g. this" is not torn.
    """
    last = end - 1
    while last > 0 and text[last] in _CLOSING:
        last -= 1
    return text[last] in _ENDS and not text[start].islower()
