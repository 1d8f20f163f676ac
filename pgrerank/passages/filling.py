"""Fills windows of a model with a text, so that an edit moves few cuts.

Each cut is made in the later two thirds of the window that begins at the cut before: at the best
level that is there, and among places of one level where a hash of the text around the place is
highest. Two texts with a stretch in common, whose windows begin at different places of it, so come
to cut at the same place after a few windows, and from there on alike; had each window been filled
to the last sentence that fits, all cuts behind an edit would move. In the later half alone there
may be but one place for each window, as with paragraphs that are all a little longer than a third
of it; then windows that begin at odd ones never meet those that begin at even ones. The method is
content-defined chunking, as in: Muthitacharoen, Chen and Mazières, A Low-bandwidth Network File
System, SOSP 2001.
"""

from __future__ import annotations

import bisect
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pgrerank.passages.marks import Level, marks_of, stripped

_AROUND = 24
"""Characters to each side of a place, of which the hash is made."""
_JOINER = "\u200d"
_INSIDE = 10
"""How many levels lower a place is inside of what is kept whole: lower than all others."""


class Stretch(NamedTuple):
    """A window's text: from ``begin`` to ``end``, of which what is before ``own`` is overlap."""

    begin: int
    own: int
    end: int


class Filling:
    """A text with the places where it may be cut, and the tokens that are between them."""

    def __init__(
        self, text: str, offsets: ArrayLike, whole: Sequence[tuple[int, int]] = ()
    ) -> None:
        self._text = text
        self._marks = marks = marks_of(text)
        places = np.array(offsets, np.int64).reshape(-1, 2)
        self._token_starts = np.maximum.accumulate(places[:, 0])
        # Of each place, the tokens before what comes after it, and those before its own end.
        self._first = np.searchsorted(np.maximum.accumulate(places[:, 1]), marks.starts, "right")
        self._last = np.searchsorted(self._token_starts, marks.ends, "left")
        self._first[0], self._last[0], self._last[-1] = 0, 0, len(places)
        # What is kept whole, as the numbers of the places where it begins and ends.
        self._whole = [
            (np.searchsorted(marks.starts, begin), np.searchsorted(marks.ends, end))
            for begin, end in (stripped(text, *one) for one in whole)
            if begin < end
        ]
        for first, last in self._whole:
            marks.levels[first + 1 : last] -= _INSIDE

    def stretches(self, room: int, overlap: int) -> Iterator[Stretch]:
        """Stretches of ``room`` tokens at most, besides up to ``overlap`` of the one before.

        Blank ones are left out. A stretch cut inside a word may have more tokens when it stands
        alone; one of a single character may have more here too.
        """
        before = -1
        for begin, end in self._windows(room):
            own, end = stripped(self._text, begin, end)
            if own < end:
                first = self._overlapping(before, own, overlap) if overlap else own
                yield Stretch(first, own, end)
                before = own

    def _windows(self, room: int) -> Iterator[tuple[int, int]]:
        begin = token = 0
        total = int(self._last[-1])
        while total - token > room:
            found = self._cut(token, room, total)
            if found is None:
                break
            end, start, token = found
            yield begin, end
            begin = start
        yield begin, len(self._text)

    def _cut(self, token: int, room: int, total: int) -> tuple[int, int, int] | None:
        """Where the window that begins with a token ends: end, next start, next token."""
        low = token + -(-room // 3)
        high = min(token + room, total - room // 4)  # what is left has some words
        first, last = np.searchsorted(self._last, [low, high + 1])
        # A token may reach from one word into the next.
        first = max(first, np.searchsorted(self._first, token, "right"))
        if first < last:
            levels = self._marks.levels[first:last]
            best = first + np.flatnonzero(levels == levels.max())
            mark = best[self._choose(self._marks.starts[best])]
            if self._marks.levels[mark] < 0:
                mark = self._outside(mark, token, room)
            ends, starts, _ = self._marks
            return int(ends[mark]), int(starts[mark]), int(self._first[mark])
        inside = self._inside_word(token, low, high)
        if inside is None:
            return None
        place = int(self._token_starts[inside])
        return place, place, inside

    def _outside(self, mark: int, token: int, room: int) -> int:
        """Where what is kept whole begins, or else ends, if it fits; or else this place inside."""
        first, last = self._whole[bisect.bisect(self._whole, mark, key=itemgetter(0)) - 1]
        if self._last[last] - self._first[first] > room:
            return mark
        return int(first if self._first[first] > token else last)

    def _inside_word(self, token: int, low: int, high: int) -> int | None:
        """The token to cut before, where there is no end of a word: between characters."""
        starts = self._token_starts
        found = (low + np.flatnonzero(starts[low : high + 1] > starts[low - 1 : high])).tolist()
        if found:
            whole = [one for one in found if not self._continues(int(starts[one]))] or found
            return int(whole[self._choose(starts[whole])])
        later = int(np.searchsorted(starts, starts[token], "right"))
        return later if later < len(starts) else None

    def _continues(self, place: int) -> bool:
        """Whether a reader sees one character across this place: accents, joined emoji."""
        before, after = self._text[place - 1], self._text[place]
        return _JOINER in (before, after) or unicodedata.category(after) in ("Mn", "Mc", "Me", "Sk")

    def _choose(self, places: NDArray[np.int64]) -> int:
        """Which of some places in the text; of equal ones the last."""
        if len(places) == 1:
            return 0
        around = [self._text[max(0, p - _AROUND) : p + _AROUND] for p in places.tolist()]
        hashes = [zlib.crc32(one.encode("utf-8", "surrogatepass")) for one in around]
        return max(range(len(hashes)), key=lambda index: (hashes[index], index))

    def _overlapping(self, before: int, own: int, overlap: int) -> int:
        """Where what is read before a stretch begins: with a sentence, or else with a word.

        It is behind ``before``, where the stretch before begins. Inside a word there is none.
        """
        _, starts, levels = self._marks
        mark = int(np.searchsorted(starts, own))
        least = self._first[mark] - overlap
        first = max(np.searchsorted(self._first, least), np.searchsorted(starts, before, "right"))
        if starts[mark] != own or first >= mark:
            return own
        sentences = np.flatnonzero(levels[first:mark] >= Level.SENTENCE)
        return int(starts[first + (sentences[0] if len(sentences) else 0)])
