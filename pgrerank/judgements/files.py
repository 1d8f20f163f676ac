"""Judgements in files: BEIR folders, TREC's qrels with a file of queries, JSON lines.

TREC's: https://trec.nist.gov/data/qrels_eng/ (query id, iteration, key, relevance).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgrerank.errors import EvaluationError
from pgrerank.judgements import beir
from pgrerank.judgements.lines import (
    brief,
    json_object,
    only,
    read_lines,
    refuse,
    text,
    whole,
    write_lines,
)
from pgrerank.judgements.types import Judgements, Qrels

_FIELDS = ("id", "query", "qrels", "passages")
_TRIPLE = ("id", "query", "pos", "neg", "pos_id", "neg_id", "pos_scores", "neg_scores")


def read(path: Path, split: str = "test") -> Judgements:
    """The judgements of a BEIR folder's split, or of a JSON lines file; raises as those do."""
    return read_beir(path, split) if path.is_dir() else read_json_lines(path)


def read_beir(folder: Path, split: str = "test") -> Judgements:
    """The judgements of a split of a BEIR folder; its corpus is not looked at.

    Raises FileError with every bad line, by number and column or field (the first 20).
    """
    texts = beir.read_queries(folder / "queries.jsonl")
    qrels = beir.read_qrels(folder, split, queries=texts)
    return Judgements({query: texts[query] for query in qrels}, qrels)


def read_trec(qrels_path: Path, queries_path: Path) -> Judgements:
    """The judgements of TREC's qrels; the queries are `id<TAB>text`, or BEIR's in a `.jsonl`.

    Raises as :func:`read_beir` does, also for a judged query that has no text.
    """
    queries = read_queries(queries_path)
    qrels = read_trec_qrels(qrels_path, queries=queries)
    return Judgements({query: queries[query] for query in qrels}, qrels)


def read_queries(path: Path) -> dict[str, str]:
    """Queries' texts by id: `id<TAB>text`, or BEIR's where the name ends in `.jsonl`."""
    if path.suffix == ".jsonl":
        return beir.read_queries(path)
    queries: dict[str, str] = {}

    def read(_number: int, line: str) -> None:
        row = line.split("\t")
        if len(row) != 2:
            raise ValueError(f"{len(row)} columns, 2 expected: id<TAB>text")
        if row[0] in queries:
            raise ValueError(f"column 1: {row[0]!r} is further up already")
        queries[row[0]] = row[1]

    read_lines(path, read)
    return queries


def read_trec_qrels(path: Path, *, queries: Mapping[str, str] | None = None) -> Qrels:
    """TREC's qrels alone; where `queries` are given, a query that has no text there is refused."""
    qrels: dict[str, dict[str, int]] = {}

    def judge(_number: int, line: str) -> None:
        row = line.split()
        if len(row) != 4:
            raise ValueError(f"{len(row)} columns, 4 expected: query id, iteration, key, relevance")
        if queries is not None and not queries.get(row[0], "").strip():
            raise ValueError(f"column 1: query {row[0]!r} has no text among the queries")
        beir.add(qrels, row[0], row[2], whole(row[3], 4))

    read_lines(path, judge)
    if not qrels:
        refuse(path, ["it holds no judgement"])
    return qrels


def read_json_lines(path: Path) -> Judgements:
    """Lines `{"id": …, "query": …, "qrels": {key: relevance}}`; without an id, the line's number.

    ``"passages": {key: [[first, after], …]}`` may say where in documents' texts the answers are, in
    characters from 0. FlagEmbedding's lines with `pos_id` and `neg_id` serve too: relevance 1 and
    0. Raises as :func:`read_beir` does.
    """
    queries: dict[str, str] = {}
    qrels: dict[str, Mapping[str, int]] = {}
    passages: dict[str, Mapping[str, Sequence[tuple[int, int]]]] = {}

    def read(number: int, line: str) -> None:
        row = json_object(line)
        identifier = str(number if row.get("id") is None else row["id"])
        if identifier in queries:
            raise ValueError(f"field 'id': {identifier!r} is further up already")
        judged = _relevance(row) if "qrels" in row else _of_triple(row)
        if row.get("passages"):
            passages[identifier] = _passages(row, judged)
        queries[identifier], qrels[identifier] = text(row, "query"), judged

    read_lines(path, read)
    if not queries:
        refuse(path, ["it holds no query"])
    return Judgements(queries, qrels, passages)


def write_trec(judgements: Judgements, qrels_path: Path, queries_path: Path | None = None) -> None:
    """Write TREC's qrels, and the queries as `id<TAB>text` where a path for them is given.

    Raises EvaluationError for what these can't hold: white space in ids and keys, tabs and line
    ends in queries. :func:`write_json_lines` holds all.
    """
    write_lines(qrels_path, _trec_lines(judgements.qrels))
    if queries_path is not None:
        write_lines(queries_path, _query_lines(judgements.queries))


def write_json_lines(judgements: Judgements, path: Path) -> None:
    """Write lines that :func:`read_json_lines` reads."""
    write_lines(
        path,
        (json.dumps(_row(judgements, query), ensure_ascii=False) for query in judgements.qrels),
    )


def _row(judgements: Judgements, query: str) -> dict[str, object]:
    row: dict[str, object] = {
        "id": query,
        "query": judgements.queries[query],
        "qrels": dict(judgements.qrels[query]),
    }
    passages = judgements.passages.get(query)
    return row | ({"passages": dict(passages)} if passages else {})


def word(value: str, what: str) -> str:
    """The value, if TREC's formats can hold it; raises EvaluationError for white space in it."""
    if value.split() != [value]:
        raise EvaluationError(
            f"{what} {value!r} can't stand in a file of TREC's, whose columns white space parts:"
            " judgements can be written as JSON lines"
        )
    return value


def _trec_lines(qrels: Qrels) -> Iterator[str]:
    for query, documents in qrels.items():
        for key, relevance in documents.items():
            yield f"{word(query, 'query id')} 0 {word(key, 'key')} {relevance}"


def _query_lines(queries: Mapping[str, str]) -> Iterator[str]:
    for query, content in queries.items():
        if any(mark in content for mark in "\t\n\r"):
            raise EvaluationError(
                f"query {query!r} has a tab or several lines, which id<TAB>text can't hold: write"
                " JSON lines"
            )
        yield f"{word(query, 'query id')}\t{content}"


def _relevance(row: Mapping[str, Any]) -> dict[str, int]:
    only(row, _FIELDS)
    judged = row["qrels"]
    if not isinstance(judged, dict) or not judged:
        raise ValueError(f"field 'qrels': expected {{key: relevance}}, not {brief(judged)}")
    for key, value in judged.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(  # noqa: TRY004
                f"field 'qrels'[{key!r}]: expected a whole number, not {brief(value)}"
            )
    return judged


def _passages(
    row: Mapping[str, Any], judged: Mapping[str, int]
) -> dict[str, list[tuple[int, int]]]:
    found = row["passages"]
    if not isinstance(found, dict):
        raise ValueError(  # noqa: TRY004
            f"field 'passages': expected {{key: [[first, after], …]}}, not {brief(found)}"
        )
    if unknown := sorted(found.keys() - judged.keys()):
        raise ValueError(f"field 'passages'[{unknown[0]!r}]: the document is not in 'qrels'")
    return {key: _stretches(key, stretches) for key, stretches in found.items()}


def _stretches(key: str, stretches: Any) -> list[tuple[int, int]]:
    for one in stretches if stretches and isinstance(stretches, list) else [stretches]:
        is_pair = isinstance(one, list) and [type(place) for place in one] == [int, int]
        if not (is_pair and 0 <= one[0] < one[1] < 2**31):
            raise ValueError(
                f"field 'passages'[{key!r}]: expected [first, after], characters from 0 in order,"
                f" not {brief(one)}"
            )
    return [(first, after) for first, after in stretches]


def _of_triple(row: Mapping[str, Any]) -> dict[str, int]:
    only(row, _TRIPLE, besides=("prompt", "type"))
    if not row.get("pos_id"):
        raise ValueError("field 'qrels' is missing, and so is 'pos_id', which would do")
    judged: dict[str, int] = {}
    for name, relevance in (("neg_id", 0), ("pos_id", 1)):
        for key in _keys(row, name):
            judged[key] = relevance
    return judged


def _keys(row: Mapping[str, Any], name: str) -> Sequence[str]:
    values = row.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str | int) for value in values):
        raise ValueError(f"field {name!r}: expected a list of keys, not {brief(values)}")
    return [str(value) for value in values]
