"""Cuts claimed documents into passages, and finds those that are not encoded yet."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pgrerank.models import Encoder
from pgrerank.passages import Passage as Found
from pgrerank.passages import cut
from pgrerank.worker.claim import Claim, Document

LARGEST = 512
"""Tokens of a passage at most, unless passage_size says otherwise: a longer one has one embedding
for too many things."""


class Passage(NamedTuple):
    """A passage that is to be encoded: its number, what a model reads of it, and hashes: of that
    with its stretch of the text, and of the stretch alone.
    """

    number: int
    reading: str
    hash: bytes
    cut_hash: bytes


@dataclass(frozen=True)
class CutDocument:
    """A document with the passages that are to be encoded; the others are stored already.

    `bounds` has for each of all its passages the number, the first character and the one after the
    last, in turn; None where the text is one passage, which has the number 1.
    """

    document: Document
    bounds: Sequence[int] | None
    new: Sequence[Passage]


class Work(NamedTuple):
    """Some passages of a document, which is whole once they are stored, or not yet."""

    cut: CutDocument
    passages: Sequence[Passage]
    is_last: bool


def cut_documents(
    claim: Claim, documents: Sequence[Document], encoders: Mapping[str, Encoder]
) -> list[CutDocument]:
    """Cut documents as their generation wants it; raises ModelError as encoders do."""
    if not encoders:
        return [CutDocument(document, None, []) for document in documents]
    encoder = min(encoders.values(), key=lambda one: one.room)
    size = claim.passage_size or min(LARGEST, encoder.room)
    return [_cut(claim, document, encoder, size) for document in documents]


def portions(cuts: Sequence[CutDocument], characters: int) -> Iterator[list[Work]]:
    """Work in portions of a bounded length in characters, of one passage at least.

    Short documents come first, so that a long one doesn't hold them up, and whole, if they fit.
    """
    some: list[Work] = []
    left = characters
    for one in sorted(cuts, key=lambda cut: sum(len(passage.reading) for passage in cut.new)):
        part: list[Passage] = []
        for passage in one.new:
            size = len(passage.reading)
            if (some or part) and size > left:
                if part:
                    some.append(Work(one, part, is_last=False))
                yield some
                some, part, left = [], [], characters
            part.append(passage)
            left -= size
        some.append(Work(one, part, is_last=True))
    if some:
        yield some


def _cut(claim: Claim, document: Document, encoder: Encoder, size: int) -> CutDocument:
    content = document.content or ""
    prefix = document.prefix or ""
    if prefix:
        tokens = encoder.offsets([prefix])[0][: size // 2]
        prefix = prefix[: tokens[-1][1]] if tokens else ""
        size -= len(tokens)
    found = cut(
        content,
        encoder.offsets,
        size=size,
        overlap=min(claim.passage_overlap, size // 4),
        structure=claim.passage_structure,
    )
    passages = [_passage(content[one.start : one.end], prefix, one) for one in found]
    if len(found) == 1:
        is_stored = (document.stored or {}).get("1") == passages[0].hash.hex()
        return CutDocument(document, None, [] if is_stored else [passages[0]._replace(number=1)])
    numbered = _numbered(passages, document.stored or {})
    bounds = [
        value
        for passage, place in zip(numbered, found, strict=True)
        for value in (passage.number, place.start, place.end)
    ]
    stored = {int(number) for number in document.stored or {}}
    return CutDocument(document, bounds, [one for one in numbered if one.number not in stored])


def _numbered(passages: Sequence[Passage], stored: Mapping[str, str]) -> list[Passage]:
    """The passages with the numbers of stored ones that are the same, or else with unused ones."""
    known = defaultdict(list)
    for number, name in stored.items():
        known[name].append(int(number))
    unused = itertools.count(1 + max(map(int, stored), default=0))
    return [
        one._replace(number=same.pop() if (same := known[one.hash.hex()]) else next(unused))
        for one in passages
    ]


def as_read(prefix: str, text: str) -> str:
    """What models read of a passage's words: with the prefix in front, unless they begin with it.

    SQL makes the same for cross-encoders.
    """
    return f"{prefix}\n{text}" if prefix and not text.startswith(prefix) else text


def _passage(text: str, prefix: str, found: Found) -> Passage:
    headings = " > ".join(found.headings)
    reading = as_read("\n".join(filter(None, [prefix, headings])), found.text)
    return Passage(0, reading, _hash(f"{reading}\x1e{text}", 16), _hash(text, 8))


def _hash(text: str, size: int) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:size]
