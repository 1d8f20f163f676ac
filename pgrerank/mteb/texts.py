"""Texts as mteb's own models read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def query_text(row: Mapping[str, Any]) -> str:
    """The text of a row of queries, its instruction put after it as mteb puts it.

    A conversation becomes one line of its turns, with the instruction before it.
    """
    text, instruction = row["text"], row.get("instruction")
    if isinstance(text, str):
        return storable(f"{text} {instruction}" if instruction else text)
    turns = [
        turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in text
    ]
    conversation = "; ".join(turns)
    return storable(f"{instruction} {conversation}" if instruction else conversation)


def storable(text: str) -> str:
    """The text without NUL characters, which Postgres can't hold and some corpora have."""
    return text.replace("\0", "")
