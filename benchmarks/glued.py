"""Glues a collection's documents into long ones, which are judged by their parts.

    python benchmarks/glued.py OUTPUT data/{scifact,npl} [--documents 150] [--seed 1]

Each long document has a length by chance from 2,000 to 20,000 words. Every document that is
relevant to a test query is a part of one of them; the others fill them up, and may be in several. A
long document is relevant to a query where a part of it is. OUTPUT gets corpus.jsonl, queries.jsonl,
qrels/test.tsv and spans.jsonl: of each judged pair the first character of the relevant parts and
the one after their last.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pgrerank.judgements import read_beir
from pgrerank.judgements.beir import read_corpus

WORDS = (2_000, 20_000)
BETWEEN = "\n\n"
Spans = dict[str, dict[str, list[tuple[int, int]]]]
"""Of each query and long document, where the relevant parts are."""


def glue(folders: Sequence[Path], output: Path, *, documents: int, seed: int) -> None:
    """Write the collection, unless it is there."""
    if (output / "spans.jsonl").exists():
        return
    chosen = random.Random(seed)
    texts: dict[str, str] = {}
    queries: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = defaultdict(dict)  # of a part, by query
    for folder in folders:
        judged = read_beir(folder, "test")
        queries |= {f"{folder.name}-{query}": text for query, text in judged.queries.items()}
        texts |= {f"{folder.name}-{k}": d.content for k, d in read_corpus(folder).items()}
        for query, found in judged.qrels.items():
            for key, relevance in found.items():
                if relevance > 0:
                    relevant[f"{folder.name}-{key}"][f"{folder.name}-{query}"] = relevance
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    spans: Spans = defaultdict(lambda: defaultdict(list))
    corpus: dict[str, str] = {}
    for number, parts in enumerate(_parts(texts, sorted(relevant), documents, chosen), 1):
        corpus[key := f"long-{number}"] = BETWEEN.join(texts[part] for part in parts)
        begin = 0
        for part in parts:
            end = begin + len(texts[part])
            for query, relevance in relevant.get(part, {}).items():
                spans[query][key].append((begin, end))
                qrels[query][key] = max(relevance, qrels[query].get(key, 0))
            begin = end + len(BETWEEN)
    _write(output, corpus, {query: queries[query] for query in sorted(qrels)}, qrels, spans)


def read_spans(folder: Path) -> Spans:
    """Read where the relevant parts are."""
    spans: Spans = defaultdict(dict)
    for line in (folder / "spans.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        spans[row["query"]][row["document"]] = [tuple(one) for one in row["spans"]]
    return spans


def _parts(
    texts: dict[str, str], relevant: Sequence[str], documents: int, chosen: random.Random
) -> list[list[str]]:
    """The parts of each long document, in the order that they have there."""
    found: list[list[str]] = [[] for _ in range(documents)]
    for part in relevant:
        chosen.choice(found).append(part)
    others = sorted(texts.keys() - set(relevant))
    low, high = map(math.log, WORDS)
    for parts in found:
        left = math.exp(chosen.uniform(low, high)) - sum(len(texts[p].split()) for p in parts)
        for part in chosen.sample(others, len(others)):
            if left <= 0:
                break
            parts.append(part)
            left -= len(texts[part].split())
        chosen.shuffle(parts)
    return found


def _write(
    output: Path,
    corpus: dict[str, str],
    queries: dict[str, str],
    qrels: dict[str, dict[str, int]],
    spans: Spans,
) -> None:
    (output / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        rows = [{"_id": key, "title": "", "text": text} for key, text in texts.items()]
        _lines(output / f"{name}.jsonl", map(json.dumps, rows))
    judged = [f"{q}\t{key}\t{score}" for q in queries for key, score in qrels[q].items()]
    _lines(output / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judged])
    found = [
        {"query": query, "document": key, "spans": own}
        for query in queries
        for key, own in spans[query].items()
    ]
    _lines(output / "spans.jsonl", map(json.dumps, found))


def _lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def main() -> None:
    """Glue and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--documents", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    glue(arguments.folders, arguments.output, documents=arguments.documents, seed=arguments.seed)


if __name__ == "__main__":
    main()
