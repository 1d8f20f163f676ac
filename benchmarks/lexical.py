"""The lexical leg beside the package bm25s, and its speed on many documents.

    python benchmarks/lexical.py data/{scifact,cranfield,npl} [--rows 100000]

Reads corpus.jsonl, queries.jsonl and qrels/test.tsv of each folder. Prints nDCG@10 and recall of
the first hundred of both (bm25s with its English stop words and PyStemmer's stems; `pip install
bm25s PyStemmer`). With --rows, makes a table of so many documents, each of them the halves of two
documents of the folders, and asks the folders' queries, and besides each of their most frequent
words alone: milliseconds of the whole SQL call, how many of the best hundred and of the best ten
the bounded search finds that scoring every document would, and bytes of text, words and
statistics. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psycopg

from pgrerank import embedded
from pgrerank.evaluation.measures import measure
from pgrerank.install import schema
from pgrerank.judgements import read_beir
from pgrerank.judgements.beir import read_corpus
from pgrerank.terminal import document_progress

DEPTH = 100
MEASURES = ("nDCG@10", f"R@{DEPTH}")


def texts_of(folder: Path) -> dict[str, str]:
    """A collection's documents by key: title and text."""
    return {
        key: f"{document.title or ''}\n{document.text}".strip().replace("\0", "")
        for key, document in read_corpus(folder).items()
    }


def store_all(connection: psycopg.Connection, name: str) -> None:
    """Store the words of all that waits; without models there is nothing to be encoded."""
    statement = "SELECT FROM pgrerank.claim(1000, %s)"
    [total] = connection.execute(
        "SELECT count(*) FROM pgrerank.pending WHERE reranker = %s", (name,)
    ).fetchone() or (0,)
    done = 0
    with document_progress(f"storing the words of {name}") as progress:
        while connection.execute(statement, (name,)).fetchone() is not None:
            done += 1000
            progress(min(done, total), total)


def create(connection: psycopg.Connection, name: str, documents: Iterator[tuple[str, str]]) -> None:
    """A table with these documents, and a reranker over it that has no model."""
    connection.execute(f"CREATE TABLE {name} (id text PRIMARY KEY, body text)")
    with connection.cursor().copy(f"COPY {name} FROM STDIN") as copy:
        for row in documents:
            copy.write_row(row)
    connection.execute("SELECT pgrerank.create_reranker(%s, %s, '{body}')", (name, name))
    store_all(connection, name)
    connection.execute("VACUUM ANALYZE")


def found(connection: psycopg.Connection, name: str, query: str) -> list[str]:
    """The keys that the product finds."""
    rows = connection.execute(
        f"SELECT id FROM pgrerank.{name}_search(%s, {DEPTH}, timeout => '1 min')", (query,)
    )
    return [key for (key,) in rows]


def found_by_bm25s(texts: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, list[str]]:
    """The keys that bm25s finds, by query."""
    import bm25s
    import Stemmer

    def cut(values: Sequence[str]) -> Any:
        return bm25s.tokenize(
            values, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False
        )

    index = bm25s.BM25()
    index.index(cut(list(texts.values())), show_progress=False)
    keys = list(texts)
    depth = min(DEPTH, len(texts))
    places, _ = index.retrieve(cut(list(queries.values())), k=depth, show_progress=False)
    return {
        query: [keys[place] for place in row] for query, row in zip(queries, places, strict=True)
    }


def compared(connection: psycopg.Connection, folder: Path) -> dict[str, Any]:
    """Both on one collection."""
    texts, judged = texts_of(folder), read_beir(folder, "test")
    create(connection, folder.name, iter(texts.items()))
    orders = {
        "pgrerank": {q: found(connection, folder.name, text) for q, text in judged.queries.items()},
        "bm25s": found_by_bm25s(texts, judged.queries),
    }
    return {"collection": folder.name, "queries": len(judged.queries)} | {
        who: measure(judged.qrels, order, MEASURES) for who, order in orders.items()
    }


def halves(texts: Sequence[str], rows: int) -> Iterator[tuple[str, str]]:
    """Documents made of the halves of two; the same ones in every run."""
    rng = random.Random(0)
    for number in range(rows):
        first, second = rng.choice(texts), rng.choice(texts)
        yield str(number), first[: len(first) // 2] + " " + second[len(second) // 2 :]


def best(connection: psycopg.Connection, name: str, query: str) -> dict[str, float]:
    """The scores of the best hundred when every document is scored."""
    rows = connection.execute(
        f"""
        SELECT h.keys, h.scores
        FROM pgrerank._reranker('{name}') r, pgrerank._generation('{name}', 1) g,
            LATERAL (
                SELECT array_agg(w.lexeme) AS lexemes, array_agg(w.idf) AS idfs
                FROM pgrerank._query_words(g, pgrerank._word_statistics(g), %s) w) q,
            LATERAL pgrerank._highest(r, g, pgrerank._sparse(q.lexemes, q.idfs), NULL, 'true') h
        """,
        (query,),
    ).fetchone() or ([], [])
    return dict(zip(rows[0] or [], rows[1] or [], strict=True))


def timed(connection: psycopg.Connection, name: str, queries: Sequence[str]) -> dict[str, Any]:
    """How long these queries take, and what they find of the best hundred."""
    milliseconds, of_hundred, of_ten = [], [], []
    for query in queries:
        found(connection, name, query)
        started = time.perf_counter()
        keys = found(connection, name, query)
        milliseconds.append(1000 * (time.perf_counter() - started))
        if len(of_ten) < 40 and (scores := best(connection, name, query)):
            for shares, depth in ((of_hundred, 100), (of_ten, 10)):
                worst = sorted(scores.values(), reverse=True)[:depth][-1]
                hits = sum(scores.get(key, 0) >= worst for key in keys[:depth])
                shares.append(min(1.0, hits / min(depth, len(scores))))
    return {
        "queries": len(queries),
        "p50": float(np.percentile(milliseconds, 50)),
        "p95": float(np.percentile(milliseconds, 95)),
        "of the best 100": fmean(of_hundred),
        "of the best 10": fmean(of_ten),
    }


def large(connection: psycopg.Connection, folders: Sequence[Path], rows: int) -> dict[str, Any]:
    """A table of so many documents, asked the folders' queries and their frequent words."""
    texts = [text for folder in folders for text in texts_of(folder).values() if text.strip()]
    name = f"rows_{rows}"
    if connection.execute("SELECT to_regclass(%s)", (name,)).fetchone() == (None,):
        create(connection, name, halves(texts, rows))
    [words, terms, text] = connection.execute(
        f"SELECT pg_total_relation_size('pgrerank.{name}_1_words'),"
        f" pg_total_relation_size('pgrerank.{name}_1_terms'), sum(octet_length(body)) FROM {name}"
    ).fetchone() or (0, 0, 0)
    frequent = connection.execute(
        f"SELECT lexeme, share FROM pgrerank.{name}_1_terms ORDER BY share DESC LIMIT 20"
    ).fetchall()
    return (
        {
            "rows": rows,
            "bytes": {"text": int(text), "words": words, "statistics": terms},
            "most frequent": frequent[0][1],
        }
        | {
            folder.name: timed(
                connection, name, list(read_beir(folder, "test").queries.values())[:100]
            )
            for folder in folders
        }
        | {"one frequent word": timed(connection, name, [lexeme for lexeme, _ in frequent])}
    )


def main() -> None:
    """Compare, then measure the speed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, help="measure the speed on so many documents")
    parser.add_argument("--data", type=Path, help="keep the server's files here")
    arguments = parser.parse_args()
    with (
        embedded.start(arguments.data) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        schema.install(connection)
        result: dict[str, Any] = {"collections": []}
        for folder in arguments.folders:
            if connection.execute("SELECT to_regclass(%s)", (folder.name,)).fetchone() == (None,):
                one = compared(connection, folder)
                result["collections"].append(one)
                print(json.dumps(one))
        if arguments.rows:
            result["large"] = large(connection, arguments.folders, arguments.rows)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
