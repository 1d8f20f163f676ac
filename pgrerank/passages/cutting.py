"""Cuts a text into passages that a model reads one at a time."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.passages.filling import Filling, Stretch
from pgrerank.passages.marks import stripped
from pgrerank.passages.reading import Read, Structure, read
from pgrerank.passages.sections import Section, sections

Tokenise = Callable[[Sequence[str]], Sequence[Sequence[tuple[int, int]]]]
"""Gives for each text the tokens that a model reads of it, without special ones: of each its first
character and the one after its last."""
SMALLEST_SIZE = 4


class Passage(NamedTuple):
    """A stretch of a text: its first character and the one after its last.

    ``text`` is what a model reads of it: of HTML, what is between its tags. ``headings`` are the
    titles that it stands under, the highest first.
    """

    start: int
    end: int
    text: str
    headings: tuple[str, ...] = ()


def cut(
    text: str,
    tokenise: Tokenise,
    *,
    size: int,
    overlap: int = 0,
    structure: Structure = "plain",
) -> list[Passage]:
    """Cut a text into passages of at most ``size`` tokens, in order.

    Together they hold all of it but white space, markup and what no reader of HTML sees; a text
    without words has none, and one that fits is one passage. Cuts are at headings, or else at ends
    of paragraphs or sentences where there are any, and depend on the text around them, so that an
    edit changes few passages. Code and tables stay whole where they fit. Each but the first of a
    section begins with up to ``overlap`` tokens of the one before, a quarter of ``size`` at most. A
    single character that is more than ``size`` tokens is a passage.

    Raises ValueError for another size, overlap or structure, and MissingExtraError where what reads
    the structure is not installed.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"size is {size}, expected at least {SMALLEST_SIZE} tokens")
    if not 0 <= overlap <= size // 4:
        raise ValueError(f"overlap is {overlap}, expected 0 to {size // 4}: a quarter of the size")
    source = read(text, structure)
    if not source.text.strip():
        return []
    [offsets] = tokenise([source.text])
    if len(offsets) <= size:
        return [Passage(0, len(text), source.text)]
    tokens = np.maximum.accumulate(np.array(offsets, np.int64))
    found = list(sections(source, tokens[:, 0], size))
    stretches = [s for one in found for s in _stretches(source, one, tokens, size, overlap)]
    fitting = _fitting(source.text, stretches, tokenise, size)
    return [_passage(source, found, begin, end) for begin, end in fitting]


def _stretches(
    source: Read, section: Section, tokens: NDArray[np.int64], size: int, overlap: int
) -> Iterator[Stretch]:
    """The windows of a section."""
    begin, end = stripped(source.text, section.start, section.end)
    first, last = np.searchsorted(tokens[:, 0], [begin, end])
    if last - first <= size:
        if begin < end:
            yield Stretch(begin, begin, end)
        return
    first_whole = bisect.bisect(source.whole, begin, key=itemgetter(1))
    after_whole = bisect.bisect_left(source.whole, end, key=itemgetter(0))
    whole = [
        (max(b, begin) - begin, min(e, end) - begin)
        for b, e in source.whole[first_whole:after_whole]
    ]
    own = Filling(source.text[begin:end], tokens[first:last] - begin, whole)
    for one in own.stretches(size - overlap, overlap):
        yield Stretch(*(begin + place for place in one))


def _fitting(
    text: str, stretches: Sequence[Stretch], tokenise: Tokenise, size: int
) -> Iterator[tuple[int, int]]:
    """The stretches that fit when tokenised alone, without their overlap if need be; or parts."""
    alone = tokenise([text[one.begin : one.end] for one in stretches])
    for (begin, own, end), offsets in zip(stretches, alone, strict=True):
        if len(offsets) <= size or end - begin == 1:
            yield begin, end
        elif begin < own:
            yield from _fitting(text, [Stretch(own, own, end)], tokenise, size)
        else:
            part = text[own:end]
            for start, stop in _fitting(part, _parts(part, offsets, size), tokenise, size):
                yield own + start, own + stop


def _parts(text: str, offsets: Sequence[tuple[int, int]], size: int) -> list[Stretch]:
    """Two stretches or more of a text of several characters that has too many tokens."""
    found = list(Filling(text, offsets).stretches(size, 0))
    if len(found) > 1:
        return found
    middle = len(text) // 2  # a tokenizer that gives all of it one place
    return [Stretch(0, 0, middle), Stretch(middle, middle, len(text))]


def _passage(source: Read, found: Sequence[Section], begin: int, end: int) -> Passage:
    section = found[bisect.bisect(found, begin, key=attrgetter("start")) - 1]
    return Passage(*source.span(begin, end), source.text[begin:end], section.path)
