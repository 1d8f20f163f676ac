"""Divides what is read of a text at its headings, as far as it has to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.passages.reading import Heading, Read


class Section(NamedTuple):
    """A stretch, and the titles of the headings that it stands under, the highest first."""

    start: int
    end: int
    path: tuple[str, ...]


def sections(read: Read, token_starts: NDArray[np.int64], size: int) -> Iterator[Section]:
    """A section that fits is left whole, with those below it; of others each heading starts one.

    A heading without words of its own goes to the first section below it.
    """
    return _Sections(read, token_starts, size).below(Section(0, len(read.text), ()), 0, 0)


class _Sections:
    def __init__(self, read: Read, token_starts: NDArray[np.int64], size: int) -> None:
        self._text = read.text
        self._headings: Sequence[Heading] = read.headings
        self._token_starts = token_starts
        self._size = size

    def below(self, section: Section, body: int, heading: int) -> Iterator[Section]:
        """A section whose words begin at ``body``, divided at the headings from a number on."""
        last = heading
        while last < len(self._headings) and self._headings[last].start < section.end:
            last += 1
        first, after = np.searchsorted(self._token_starts, section[:2])
        if heading == last or after - first <= self._size:
            yield section
            return
        start = section.start
        if self._text[body : self._headings[heading].start].strip():
            yield section._replace(end=self._headings[heading].start)
            start = self._headings[heading].start
        while heading < last:
            own, following = self._headings[heading], heading + 1
            while following < last and self._headings[following].level > own.level:
                following += 1
            end = self._headings[following].start if following < last else section.end
            path = (*section.path, own.title)
            yield from self.below(Section(start, end, path), own.end, heading + 1)
            start, heading = end, following
