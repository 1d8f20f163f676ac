"""Which words of a passage answer the query's, by the token vectors that are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgrerank.errors import TokensError
from pgrerank.models import Encoder
from pgrerank.models.spec import Span
from pgrerank.passages import Structure, words
from pgrerank.tokens import unpack
from pgrerank.worker.requests import Highlight, Shown, unhex

_DIGITS = 4
Highlighted = list[dict[str, Any]] | None


async def highlight(encoder: Encoder, request: Highlight) -> list[Highlighted]:
    """For each passage the words that MaxSim has chosen, in their order; None where it can't be
    told.

    A word has its first character, the one after its last, and a score: the largest inner product
    of one of its token vectors with that vector of the query which chose it. Raises TokensError for
    vectors that are malformed, or of other dimensions than the query's.
    """
    query = unpack(unhex(request.query))
    return await asyncio.to_thread(
        lambda: [_of(encoder, query, passage, request.structure) for passage in request.passages]
    )


def _of(
    encoder: Encoder, query: NDArray[np.float32], passage: Shown, structure: Structure
) -> Highlighted:
    vectors = unpack(unhex(passage.tokens))
    if vectors.shape[1] != query.shape[1]:
        raise TokensError(
            f"a passage has token vectors of {vectors.shape[1]} dimensions, the query of"
            f" {query.shape[1]}"
        )
    [spans] = encoder.offsets([passage.text])
    is_plain = words(passage.text, structure) == passage.text
    if not (encoder.has_places and is_plain) or len(vectors) < len(spans):
        return None
    products = vectors @ query.T
    before = len(vectors) - len(spans)  # those of prefix and headings
    best = {at: float(products[at].max()) for at in products.argmax(axis=0).tolist()}
    chosen = [(spans[at - before], score) for at, score in sorted(best.items()) if at >= before]
    return _words(passage.text, chosen)


def _words(text: str, chosen: Sequence[tuple[Span, float]]) -> list[dict[str, Any]]:
    """The words that tokens are in, each once."""
    found: list[dict[str, Any]] = []
    for (start, end), score in chosen:
        start, end = _whole(text, start, end)
        if start == end:
            continue
        if found and found[-1]["start"] == start:
            found[-1]["score"] = max(found[-1]["score"], round(score, _DIGITS))
        else:
            found.append({"start": start, "end": end, "score": round(score, _DIGITS)})
    return found


def _whole(text: str, start: int, end: int) -> Span:
    """A token's place without space around it, as far as its word goes."""
    while start < end and text[start].isspace():
        start += 1
    while 0 < start < len(text) and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while 0 < end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
        end += 1
    return start, end
