"""Bounds on what one request may cost, and giving back to the system what is free again."""

from __future__ import annotations

import asyncio
import ctypes
import logging

from pgrerank.errors import RequestError
from pgrerank.worker.requests import Encode, Highlight, MaxSim, Request

log = logging.getLogger(__name__)

QUERY = 100_000
"""Characters of a query: more than any model reads of one. A tokenizer takes 200 bytes for each."""
TEXTS = 8_000_000
"""Characters of all texts of a request, which make some 2 GB of tokens."""
LARGE = 2**20
"""Characters of a statement after which memory is given back."""


def check(request: Request) -> None:
    """Refuse a request whose texts would take too much memory; raises RequestError."""
    if isinstance(request, MaxSim | Highlight):
        return
    queries = request.texts if isinstance(request, Encode) else [request.query]
    if (longest := max(map(len, queries), default=0)) > QUERY:
        raise RequestError(
            f"the query has {longest} characters, {QUERY} at most; shorten it", sqlstate="54000"
        )
    texts = request.texts if isinstance(request, Encode) else request.documents
    if (total := sum(map(len, texts))) > TEXTS:
        what = "queries" if isinstance(request, Encode) else "documents"
        raise RequestError(
            f"the {what} have {total} characters, {TEXTS} at most; send fewer, or split them",
            sqlstate="54000",
        )


async def give_back() -> None:
    """Have the C library return what it keeps for later; where it can, which glibc does."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        await asyncio.to_thread(trim, 0)
