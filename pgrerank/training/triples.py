"""Queries with their positives and negatives: read, written, split.

The format is FlagEmbedding's (https://github.com/FlagOpen/FlagEmbedding, "Data format" of its
fine-tuning guide): JSON lines with `query`, `pos`, `neg`, and optionally `pos_scores`, `neg_scores`
(a teacher's, higher is better), `id`, `pos_id`, `neg_id`.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgrerank.errors import TriplesError

_SHOWN = 20
_LISTS = ("pos", "neg", "pos_scores", "neg_scores", "pos_id", "neg_id")
_FIELDS = ("query", "id", *_LISTS)


@dataclass(frozen=True)
class Triple:
    """A query, the texts that answer it, and texts that don't.

    `pos_scores` and `neg_scores`, where they are, are a teacher's scores of the texts at the same
    places; `pos_id` and `neg_id` their keys.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    id: str | None = None
    pos_id: tuple[str, ...] | None = None
    neg_id: tuple[str, ...] | None = None


def read_triples(path: Path) -> list[Triple]:
    """Read a JSON lines file.

    Raises TriplesError that names every bad line by number and column or field (the first 20 of
    them); then nothing is read.
    """
    triples, faults = [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                triples.append(_triple(line))
            except ValueError as error:
                faults.append(f"line {number}, {error}")
    if not triples and not faults:
        faults = ["it holds no triple"]
    _refuse(path, faults)
    return triples


def write_triples(path: Path, triples: Iterable[Triple]) -> None:
    """Write JSON lines; a file that is there is replaced once the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".part")
    with fresh.open("w", encoding="utf-8") as file:
        for triple in triples:
            values = {name: getattr(triple, name) for name in _FIELDS}
            written = {name: value for name, value in values.items() if value is not None}
            file.write(json.dumps(written, ensure_ascii=False) + "\n")
    fresh.replace(path)


def read_beir(folder: Path, split: str = "train") -> list[Triple]:
    """The judged queries of a BEIR folder, each with its relevant documents and those judged not.

    A document's text is its title and text, joined by a newline. Raises TriplesError for malformed
    files and for judgements of queries or documents that aren't there.
    """
    queries = _by_id(folder / "queries.jsonl", lambda row: _text(row, "text"))
    corpus = _by_id(folder / "corpus.jsonl", document_text)
    path = folder / "qrels" / f"{split}.tsv"
    judged: dict[str, dict[str, int]] = {}
    faults = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
            if number == 1 and row[:1] == ["query-id"]:
                continue
            try:
                query, document, relevance = _judgement(row, queries, corpus)
                judged.setdefault(query, {})[document] = relevance
            except ValueError as error:
                faults.append(f"line {number}, {error}")
    _refuse(path, faults)
    return [
        _judged(identifier, queries[identifier], documents, corpus)
        for identifier, documents in judged.items()
        if max(documents.values()) > 0
    ]


def document_text(row: Mapping[str, Any]) -> str:
    """A BEIR document's text: title and text, as a reranker over both columns joins them."""
    return "\n".join(part for part in (row.get("title"), _text(row, "text")) if part)


def split(
    triples: Sequence[Triple], share: float, *, seed: int
) -> tuple[list[Triple], list[Triple]]:
    """Split by query: all triples of a query (whatever its case and spaces) on one side.

    Returns the larger part and that of about `share` (0 to 1) of the queries, at least one where
    there are two; both in the order given. Raises TriplesError where there is one query only.
    """
    queries = sorted({normal(triple.query) for triple in triples})
    if len(queries) < 2:
        raise TriplesError(
            f"{len(queries)} query can't be split into training and held-out ones: give at least 2"
        )
    random.Random(seed).shuffle(queries)  # noqa: S311
    held = set(queries[: min(len(queries) - 1, max(1, round(share * len(queries))))])
    kept = [triple for triple in triples if normal(triple.query) not in held]
    return kept, [triple for triple in triples if normal(triple.query) in held]


def normal(text: str) -> str:
    """A text without what makes no difference between two: case and white space."""
    return " ".join(text.casefold().split())


def _triple(line: bytes) -> Triple:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"column {error.start + 1}: not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: not JSON: {error.msg}") from error
    if not isinstance(row, dict):
        raise ValueError(f"column 1: a JSON object is wanted, not {type(row).__name__}")  # noqa: TRY004
    # FlagEmbedding's own files may carry these two; they choose prompts, which are a model's here.
    unknown = sorted(set(row) - {*_FIELDS, "prompt", "type"})
    if unknown:
        raise ValueError(f"field {unknown[0]!r} is unknown; there are {', '.join(_FIELDS)}")
    lists = {
        name: _list(row, name, float if "scores" in name else str)
        for name in _LISTS
        if row.get(name) is not None
    }
    if not lists.get("pos"):
        raise ValueError("field 'pos': at least one text is wanted")
    for name, values in lists.items():
        side = name[:3]
        if len(values) != len(lists.get(side, ())):
            raise ValueError(
                f"field {name!r}: {len(values)} values for the {len(lists.get(side, ()))} of"
                f" {side!r}, as many are wanted"
            )
    for place, text in enumerate(lists.get("neg", ())):
        if text in lists["pos"]:
            raise ValueError(f"field 'neg'[{place}]: the same text is in 'pos'")
    identifier = row.get("id")
    return Triple(
        query=_text(row, "query"), id=None if identifier is None else str(identifier), **lists
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r}: a text is wanted, not {_brief(value)}")
    return value


def _list(row: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = row[name]
    if not isinstance(values, list):
        raise ValueError(f"field {name!r}: a list is wanted, not {_brief(values)}")  # noqa: TRY004
    return tuple(
        _value(value, f"field {name!r}[{place}]", kind) for place, value in enumerate(values)
    )


def _value(value: Any, where: str, kind: type) -> Any:
    if kind is float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(f"{where}: a number is wanted, not {_brief(value)}")
        return float(value)
    if where.startswith(("field 'pos_id'", "field 'neg_id'")):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: a text is wanted, not {_brief(value)}")
    return value


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"


def _by_id(path: Path, value: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    faults = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                found[str(row["_id"])] = value(row)
            except KeyError as error:
                faults.append(f"line {number}, field {error} is missing")
            except ValueError as error:
                faults.append(f"line {number}, {error}")
    _refuse(path, faults)
    return found


def _judgement(
    row: Sequence[str], queries: Mapping[str, str], corpus: Mapping[str, str]
) -> tuple[str, str, int]:
    if len(row) != 3:
        raise ValueError(f"{len(row)} columns, 3 wanted: query-id, corpus-id, score")
    for column, value, known in ((1, row[0], queries), (2, row[1], corpus)):
        if value not in known:
            raise ValueError(f"column {column}: {value!r} is not in the collection")
    try:
        return row[0], row[1], int(row[2])
    except ValueError:
        raise ValueError(f"column 3: a whole number is wanted, not {row[2]!r}") from None


def _judged(
    identifier: str, query: str, documents: Mapping[str, int], corpus: Mapping[str, str]
) -> Triple:
    positives = [key for key, relevance in documents.items() if relevance > 0]
    texts = {corpus[key] for key in positives}
    negatives = [
        key for key, relevance in documents.items() if relevance <= 0 and corpus[key] not in texts
    ]
    return Triple(
        query,
        tuple(corpus[key] for key in positives),
        tuple(corpus[key] for key in negatives),
        id=identifier,
        pos_id=tuple(positives),
        neg_id=tuple(negatives),
    )


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        shown = "".join(f"\n  {fault}" for fault in faults[:_SHOWN])
        more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise TriplesError(f"{path} can't be read, mend it first:{shown}{more}")
