"""Collections in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`.

https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pgrerank.judgements.lines import brief, json_object, read_lines, whole

_Value = TypeVar("_Value")


class Document(NamedTuple):
    """A document of a corpus; either part may be empty."""

    title: str
    text: str

    @property
    def content(self) -> str:
        """Title and text, as a reranker over both columns joins them."""
        return "\n".join(part for part in self if part)


def read_corpus(folder: Path) -> dict[str, Document]:
    """Read the documents by key; raises FileError with every bad line."""
    return _by_id(
        folder / "corpus.jsonl",
        lambda row: Document(_string(row, "title", ""), _string(row, "text")),
    )


def read_queries(path: Path) -> dict[str, str]:
    """Read the texts by id from a `queries.jsonl`; raises FileError with every bad line."""
    return _by_id(path, lambda row: _string(row, "text"))


def read_qrels(
    folder: Path,
    split: str = "test",
    *,
    queries: Mapping[str, str] | None = None,
    documents: Container[str] | None = None,
) -> dict[str, dict[str, int]]:
    """Read relevance by query id and key.

    Raises FileError with every bad line; where `queries` or `documents` are given, one that names
    what they haven't, or a query without a text, is bad.
    """
    qrels: dict[str, dict[str, int]] = {}

    def judge(number: int, line: str) -> None:
        row = line.split("\t")
        if number == 1 and row[-1] == "score":
            return
        if len(row) != 3:
            raise ValueError(f"{len(row)} columns, 3 expected: query-id, corpus-id, score")
        for column, value, known in ((1, row[0], queries), (2, row[1], documents)):
            if known is not None and value not in known:
                raise ValueError(f"column {column}: {value!r} is not in the collection")
        if queries is not None and not queries[row[0]].strip():
            raise ValueError(f"column 1: query {row[0]!r} has no text")
        add(qrels, row[0], row[1], whole(row[2], 3))

    read_lines(folder / "qrels" / f"{split}.tsv", judge)
    return qrels


def add(qrels: dict[str, dict[str, int]], query: str, key: str, relevance: int) -> None:
    """Add a judgement; raises ValueError for one that contradicts another."""
    known = qrels.setdefault(query, {}).setdefault(key, relevance)
    if known != relevance:
        raise ValueError(f"{key!r} is {relevance} for query {query!r}, and {known} further up")


def _by_id(path: Path, value: Callable[[Mapping[str, Any]], _Value]) -> dict[str, _Value]:
    values: dict[str, _Value] = {}

    def read(_number: int, line: str) -> None:
        row = json_object(line)
        if "_id" not in row:
            raise ValueError("field '_id' is missing")
        identifier = str(row["_id"])
        if identifier in values:
            raise ValueError(f"field '_id': {identifier!r} is further up already")
        values[identifier] = value(row)

    read_lines(path, read)
    return values


def _string(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = row.get(name)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise ValueError(f"field {name!r}: expected a text, not {brief(value)}")  # noqa: TRY004
    return value
