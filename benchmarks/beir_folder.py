"""Reads a collection in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def read_lines(path: Path) -> list[dict[str, str]]:
    """Objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def read_qrels(folder: Path) -> dict[str, dict[str, int]]:
    """Relevance by query and document, of the test queries."""
    qrels: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        for query, document, relevance in list(csv.reader(file, delimiter="\t"))[1:]:
            qrels.setdefault(query, {})[document] = int(relevance)
    return qrels


def read_queries(folder: Path) -> dict[str, str]:
    """Texts of the judged test queries by id."""
    texts = {line["_id"]: line["text"] for line in read_lines(folder / "queries.jsonl")}
    return {query: texts[query] for query in read_qrels(folder)}
