"""Runs in files, in TREC's format: `query-id Q0 key rank score tag`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pgrerank.judgements.files import word
from pgrerank.judgements.lines import read_lines, refuse, whole, write_lines
from pgrerank.judgements.types import Run


def read_run(path: Path) -> Run:
    """Read a run: keys by query id, best first.

    As trec_eval does, documents are ordered by score; those of one score by rank, then as they
    stand. Raises FileError with every bad line, by number and column (the first 20).
    """
    scored: dict[str, dict[str, tuple[float, int]]] = {}

    def read(_number: int, line: str) -> None:
        row = line.split()
        if len(row) != 6:
            raise ValueError(f"{len(row)} columns, 6 expected: query-id Q0 key rank score tag")
        documents = scored.setdefault(row[0], {})
        if row[2] in documents:
            raise ValueError(f"column 3: {row[2]!r} is further up already for query {row[0]!r}")
        documents[row[2]] = (-_score(row[4]), whole(row[3], 4))

    read_lines(path, read)
    if not scored:
        refuse(path, ["it holds no document"])
    return {
        query: sorted(documents, key=documents.__getitem__) for query, documents in scored.items()
    }


def write_run(path: Path, run: Run, *, tag: str = "pgrerank") -> None:
    """Write a run; as it has no scores, a document gets how many stand from it to the last.

    A file that is there is replaced once the new one is whole. White space in ids, keys and tag,
    which the format can't hold, raises EvaluationError.
    """
    write_lines(path, _lines(run, word(tag, "tag")))


def _lines(run: Run, tag: str) -> Iterator[str]:
    for query, keys in run.items():
        for place, key in enumerate(keys):
            document = f"{word(query, 'query id')} Q0 {word(key, 'key')}"
            yield f"{document} {place + 1} {len(keys) - place} {tag}"


def _score(value: str) -> float:
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if math.isnan(score):
        raise ValueError(f"column 5: expected a number, not {value!r}")
    return score
