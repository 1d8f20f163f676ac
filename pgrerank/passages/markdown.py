"""Reads Markdown: headings, and code and tables, which are kept whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pgrerank.errors import extra
from pgrerank.passages.reading import Heading, Read, short

with extra("passages", "text of structure markdown"):
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_LINE_END = re.compile(r"\r\n?|\n")
_FRONT_MATTER = re.compile(r"\A---[ \t]*(?:\r\n?|\n).*?(?:\r\n?|\n)---[ \t]*(?=[\r\n]|\Z)", re.S)
_WHOLE = frozenset({"code_block", "fence", "html_block", "table_open"})

_blocks = MarkdownIt("commonmark").enable("table").disable("inline")
_inline = MarkdownIt("commonmark")


def read_markdown(text: str) -> Read:
    """Read Markdown as it stands, its marks too; front matter has no headings."""
    begins = [0, *(found.end() for found in _LINE_END.finditer(text)), len(text)]
    # What stands for front matter has as many lines.
    front = _FRONT_MATTER.match(text)
    lines = "\n" * len(_LINE_END.findall(front.group())) if front else ""
    tokens = _blocks.parse(lines + text[front.end() if front else 0 :])
    placed = [(token, token.map) for token in tokens if token.map]
    whole = [
        (begins[f], begins[min(t, len(begins) - 1)])
        for token, (f, t) in placed
        if token.type in _WHOLE
    ]
    return Read(text, list(_headings(tokens, begins)), list(_outermost(whole)))


def _headings(tokens: list[Token], begins: list[int]) -> Iterator[Heading]:
    """Those that are no part of a list or quotation."""
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and token.level == 0 and token.map:
            first, after = token.map
            title = _title(tokens[place + 1].content)
            yield Heading(begins[first], begins[after], int(token.tag[1:]), title)


def _title(source: str) -> str:
    [inline] = _inline.parseInline(source)
    return short(
        "".join(one.content or " " * ("break" in one.type) for one in inline.children or [])
    )


def _outermost(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    end = 0
    for span in sorted(spans):
        if span[0] >= end:
            yield span
            end = span[1]
