"""What is read of a text: its words without their markup, its headings, and what to keep whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Structure = Literal["plain", "markdown", "html"]
_LONGEST_TITLE = 200


class Heading(NamedTuple):
    """A heading: where it starts and ends in what is read, its level from 1, and its words."""

    start: int
    end: int
    level: int
    title: str


@dataclass(frozen=True)
class Read:
    """What is read of a text.

    ``starts`` and ``ends``: of each of its characters, the place in the text of what it stands for;
    None where it is the text itself. ``whole``: stretches to be kept whole, in order.
    """

    text: str
    headings: Sequence[Heading] = ()
    whole: Sequence[tuple[int, int]] = ()
    starts: NDArray[np.int64] | None = None
    ends: NDArray[np.int64] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The place in the text of a stretch that is not empty."""
        if self.starts is None or self.ends is None:
            return start, end
        return int(self.starts[start]), int(self.ends[end - 1])


def read(text: str, structure: Structure) -> Read:
    """Read a text of this structure; raises MissingExtraError where its parser isn't installed."""
    if structure == "plain":
        return Read(text)
    if structure == "markdown":
        from pgrerank.passages.markdown import read_markdown

        return read_markdown(text)
    if structure == "html":
        from pgrerank.passages.html import read_html

        return read_html(text)
    raise ValueError(f"structure is {structure!r}, expected plain, markdown or html")


def words(text: str, structure: Structure) -> str:
    """What a model reads of a text, or of a passage of it: of HTML, what is between its tags."""
    return read(text, structure).text if structure == "html" else text


def short(title: str) -> str:
    """A heading's words in one line of bounded length."""
    return " ".join(title.split())[:_LONGEST_TITLE]
