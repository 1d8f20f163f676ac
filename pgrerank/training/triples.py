"""Queries with their positives and negatives: read, written, split.

The format is FlagEmbedding's (https://github.com/FlagOpen/FlagEmbedding, "Data format" of its
fine-tuning guide): JSON lines with `query`, `pos`, `neg`, and optionally `pos_scores`, `neg_scores`
(a teacher's, higher is better), `id`, `pos_id`, `neg_id`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgrerank.errors import TriplesError
from pgrerank.judgements import beir
from pgrerank.judgements.lines import (
    brief,
    json_object,
    normal,
    only,
    read_lines,
    refuse,
    text,
    write_lines,
)

__all__ = ["Triple", "normal", "read_beir", "read_triples", "split", "write_triples"]

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

    Raises FileError that names every bad line by number and column or field (the first 20 of
    them); then nothing is read.
    """
    triples = read_lines(path, lambda _number, line: _triple(line))
    if not triples:
        refuse(path, ["it holds no triple"])
    return triples


def write_triples(path: Path, triples: Iterable[Triple]) -> None:
    """Write JSON lines; a file that is there is replaced once the new one is whole."""
    write_lines(path, map(_line, triples))


def read_beir(folder: Path, split: str = "train") -> list[Triple]:
    """The judged queries of a BEIR folder, each with its relevant documents and those judged not.

    A document's text is its title and text, joined by a newline; one without either can teach
    nothing and is left out. Raises FileError for malformed files and for judgements of queries
    or documents that aren't there.
    """
    queries = beir.read_queries(folder / "queries.jsonl")
    corpus = {key: document.content for key, document in beir.read_corpus(folder).items()}
    judged = beir.read_qrels(folder, split, queries=queries, documents=corpus)
    readable = {
        query: {key: relevance for key, relevance in documents.items() if corpus[key].strip()}
        for query, documents in judged.items()
    }
    return [
        _judged(identifier, queries[identifier], documents, corpus)
        for identifier, documents in readable.items()
        if max(documents.values(), default=0) > 0
    ]


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


def _line(triple: Triple) -> str:
    values = {name: getattr(triple, name) for name in _FIELDS}
    written = {name: value for name, value in values.items() if value is not None}
    return json.dumps(written, ensure_ascii=False)


def _triple(line: str) -> Triple:
    row = json_object(line)
    # FlagEmbedding's own files may carry these two; they choose prompts, which are a model's here.
    only(row, _FIELDS, besides=("prompt", "type"))
    lists = {
        name: _list(row, name, float if "scores" in name else str)
        for name in _LISTS
        if row.get(name) is not None
    }
    if not lists.get("pos"):
        raise ValueError("field 'pos': at least one text is expected")
    for name, values in lists.items():
        side = name[:3]
        if len(values) != len(lists.get(side, ())):
            raise ValueError(
                f"field {name!r}: {len(values)} values for the {len(lists.get(side, ()))} of"
                f" {side!r}, as many are expected"
            )
    for place, negative in enumerate(lists.get("neg", ())):
        if negative in lists["pos"]:
            raise ValueError(f"field 'neg'[{place}]: the same text is in 'pos'")
    identifier = row.get("id")
    return Triple(
        query=text(row, "query"), id=None if identifier is None else str(identifier), **lists
    )


def _list(row: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = row[name]
    if not isinstance(values, list):
        raise ValueError(f"field {name!r}: expected a list, not {brief(values)}")  # noqa: TRY004
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
            raise ValueError(f"{where}: expected a number, not {brief(value)}")
        return float(value)
    if where.startswith(("field 'pos_id'", "field 'neg_id'")):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text, not {brief(value)}")
    return value


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
