"""The demo's questions and their judgements, written by hand before any ranking was seen.

Relevance 2 answers the question, 1 answers a part of it, or in a roundabout way; what is not named
is not relevant. Where a question is about text, a method of bytes or bytearray that does the same
as one of str counts 1. Judged are the entries that Python 3.11 has.
"""

from __future__ import annotations

import csv
import importlib.resources
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question as people ask it; the demo prints those with `show`."""

    id: str
    text: str
    show: bool


def load_questions() -> list[Question]:
    """All questions, in the file's order."""
    return [
        Question(row["query-id"], row["text"], row["show"] == "yes") for row in _rows("questions")
    ]


def load_qrels() -> dict[str, dict[str, int]]:
    """Relevance by question id and entry id."""
    qrels: dict[str, dict[str, int]] = {}
    for row in _rows("qrels"):
        qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return qrels


def _rows(name: str) -> list[dict[str, str]]:
    file = importlib.resources.files("pgrerank.demo") / f"{name}.tsv"
    return list(csv.DictReader(file.read_text("utf-8").splitlines(), delimiter="\t"))
