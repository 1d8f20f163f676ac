"""Cuts a text into passages that a model reads one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pgrerank.passages.filling import Filling, Stretch
from pgrerank.passages.marks import marks_of

Tokenise = Callable[[Sequence[str]], Sequence[Sequence[tuple[int, int]]]]
"""Gives for each text the tokens that a model reads of it, without special ones: of each its first
character and the one after its last."""
SMALLEST_SIZE = 4


class Passage(NamedTuple):
    """A stretch of a text: its first character and the one after its last."""

    start: int
    end: int


def cut(text: str, tokenise: Tokenise, *, size: int, overlap: int = 0) -> list[Passage]:
    """Cut a text into passages of at most ``size`` tokens, in order.

    Together they hold all of it but white space; a blank text has none, and one that fits is one
    passage. Cuts are at ends of paragraphs or sentences where there are any, and depend on the text
    around them, so that an edit changes few passages. Each but the first begins with up to
    ``overlap`` tokens of the one before, a quarter of ``size`` at most. A single character that is
    more than ``size`` tokens is a passage. Raises ValueError for another size or overlap.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"size is {size}, expected at least {SMALLEST_SIZE} tokens")
    if not 0 <= overlap <= size // 4:
        raise ValueError(f"overlap is {overlap}, expected 0 to {size // 4}: a quarter of the size")
    if not text.strip():
        return []
    [offsets] = tokenise([text])
    if len(offsets) <= size:
        return [Passage(0, len(text))]
    stretches = list(Filling(text, marks_of(text), offsets).stretches(size - overlap, overlap))
    return list(_fitting(text, stretches, tokenise, size))


def _fitting(
    text: str, stretches: Sequence[Stretch], tokenise: Tokenise, size: int
) -> Iterator[Passage]:
    """The stretches that fit when tokenised alone, without their overlap if need be; or parts."""
    alone = tokenise([text[one.begin : one.end] for one in stretches])
    for (begin, own, end), offsets in zip(stretches, alone, strict=True):
        if len(offsets) <= size or end - begin == 1:
            yield Passage(begin, end)
        elif begin < own:
            yield from _fitting(text, [Stretch(own, own, end)], tokenise, size)
        else:
            part = text[own:end]
            for start, stop in _fitting(part, _parts(part, offsets, size), tokenise, size):
                yield Passage(own + start, own + stop)


def _parts(text: str, offsets: Sequence[tuple[int, int]], size: int) -> list[Stretch]:
    """Two stretches or more of a text of several characters that has too many tokens."""
    found = list(Filling(text, marks_of(text), offsets).stretches(size, 0))
    if len(found) > 1:
        return found
    middle = len(text) // 2  # a tokenizer that gives all of it one place
    return [Stretch(0, 0, middle), Stretch(middle, middle, len(text))]
