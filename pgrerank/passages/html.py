"""Reads HTML: what is between its tags, headings, and tables and preformatted text, kept whole."""

from __future__ import annotations

import html
import itertools
import re

import numpy as np
from numpy.typing import NDArray

from pgrerank.errors import extra
from pgrerank.passages.reading import Heading, Read, short

with extra("passages", "text of structure html"):
    from turbohtml import Token, TokenType, tokenize

_LINE_END = re.compile(r"\r\n?|\n")
_SPACE = re.compile(r"\s+")
_HEADING = re.compile(r"h[1-6]")
_UNREAD = frozenset({"script", "style"})
_WHOLE = frozenset({"pre", "table"})
_GAPS = {
    "\t": ("td", "th"),
    "\n": ("br", "dd", "dt", "li", "option", "tr"),
    "\n\n": (
        *("address", "article", "aside", "blockquote", "body", "caption", "details", "dialog"),
        *("div", "dl", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3"),
        *("h4", "h5", "h6", "head", "header", "hr", "html", "legend", "main", "menu", "nav", "ol"),
        *("p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "title", "ul"),
    ),
}
_GAP_OF = {tag: gap for gap, tags in _GAPS.items() for tag in tags}


def read_html(text: str) -> Read:
    """Read what is between tags, but no scripts and styles; white space as a browser shows it."""
    begins = [0, *(found.end() for found in _LINE_END.finditer(text))]
    tokens = list(tokenize(text, resolve_references=False))
    places = [begins[token.line - 1] + token.col for token in tokens]
    reader = _Reader(text)
    for token, (start, end) in zip(tokens, itertools.pairwise([*places, len(text)]), strict=True):
        reader.take(token, start, end)
    return reader.read()


class _Reader:
    """What has been read so far."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._length = 0
        self._pieces: list[str] = []
        self._starts: list[NDArray[np.int64]] = []
        self._ends: list[NDArray[np.int64]] = []
        self._headings: list[tuple[int, int, int]] = []
        self._whole: list[tuple[int, int]] = []
        self._heading: tuple[int, int] | None = None
        self._whole_from = 0
        self._depth = dict.fromkeys(_WHOLE, 0)
        self._unread: str | None = None

    def take(self, token: Token, start: int, end: int) -> None:
        """Take what stands from here to there."""
        if token.type in (TokenType.START_TAG, TokenType.END_TAG) and token.tag:
            self._take_tag(token.tag, token.type == TokenType.START_TAG, start, end)
        elif self._unread is None and token.type == TokenType.TEXT:
            self._take_text(start, end)
        elif self._unread is None and token.type == TokenType.CHARACTER_REFERENCE:
            self._add(html.unescape(self._source[start:end]), start, end)

    def read(self) -> Read:
        """All that was read."""
        text = "".join(self._pieces)
        empty = np.zeros(0, np.int64)
        headings = [Heading(s, e, level, short(text[s:e])) for s, e, level in self._headings]
        starts, ends = (np.concatenate([empty, *each]) for each in (self._starts, self._ends))
        return Read(text, headings, self._whole, starts, ends)

    def _take_text(self, start: int, end: int) -> None:
        raw = self._source[start:end]
        places = np.arange(start, end)
        if not self._depth["pre"]:
            space = np.fromiter(map(str.isspace, raw), np.bool_, len(raw))
            raw = _SPACE.sub(" ", raw)
            places = places[~(space & np.append(False, space[:-1]))]
        self._pieces.append(raw)
        self._length += len(raw)
        self._starts.append(places)
        self._ends.append(np.append(places[1:], end))

    def _add(self, read: str, start: int, end: int) -> None:
        self._pieces.append(read)
        self._length += len(read)
        self._starts.append(np.full(len(read), start))
        self._ends.append(np.full(len(read), end))

    def _take_tag(self, tag: str, opens: bool, start: int, end: int) -> None:
        if tag in _UNREAD:
            self._unread = tag if opens else None
        if not opens:
            self._close(tag)
        self._add(_GAP_OF.get(tag, ""), start, end)
        if opens:
            self._open(tag)

    def _open(self, tag: str) -> None:
        if _HEADING.fullmatch(tag):
            self._end_heading()
            self._heading = self._length, int(tag[1])
        if tag in _WHOLE:
            if not any(self._depth.values()):
                self._whole_from = self._length
            self._depth[tag] += 1

    def _close(self, tag: str) -> None:
        if _HEADING.fullmatch(tag):
            self._end_heading()
        if self._depth.get(tag):
            self._depth[tag] -= 1
            if not any(self._depth.values()):
                self._whole.append((self._whole_from, self._length))

    def _end_heading(self) -> None:
        if self._heading is not None:
            start, level = self._heading
            self._headings.append((start, self._length, level))
            self._heading = None
