"""How long documents are found, by which passage, and what they cost the others.

    python benchmarks/long_documents.py data/{scifact,npl} [--documents 150] [--queries 60]

Glues the collections' documents into long ones (benchmarks/glued.py), encodes them with the demo's
models in an embedded server, and measures, on the queries of both:

* nDCG@10 and more of each stage, as benchmarks/stages.py does;
* recall by the dense leg, and by the mean of a document's windows, encoded and searched beside;
* of the relevant documents among the first ten, the share whose passage, as the search returns it,
  has half of a relevant part, or is half in one;
* bytes of tables and indexes;
* passages that are encoded anew where a paragraph is appended to a document of 20,000 words.

Then one document of --words words joins a table of --short documents as they are in the last of the
collections: the times of searches with and without it, and how long a hundred more that come right
behind it take to be encoded. The server is kept in the user's cache, so that a second run only
asks. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from glued import WORDS, glue, read_spans
from psycopg import sql
from psycopg.rows import dict_row
from stages import markdown, measured, served, some_queries

from pgrerank.demo.models import MODELS, default_folder
from pgrerank.evaluation.measures import measure
from pgrerank.judgements import Judgements
from pgrerank.judgements.beir import read_corpus
from pgrerank.models import ModelSpec, load_encoder
from pgrerank.passages import cut
from pgrerank.terminal import work_progress

RECALL = ("R@10", "R@100")
FOUND = 10
COMERS = 100
ROUNDS = 3
LONG, COMER = "long", "comer-"


def search(
    connection: psycopg.Connection, name: str, query: str, **how: object
) -> list[dict[str, Any]]:
    """The rows of a search."""
    given = sql.SQL("").join(
        sql.SQL(", {} => {}").format(sql.Identifier(argument), value)
        for argument, value in how.items()
    )
    function = sql.Identifier("pgrerank", f"{name}_search")
    statement = sql.SQL("SELECT * FROM {}({}{}, timeout => '5 min')").format(function, query, given)
    return connection.cursor(row_factory=dict_row).execute(statement).fetchall()


def recall_of_dense(
    connection: psycopg.Connection, name: str, judged: Judgements
) -> dict[str, float]:
    """Recall by the dense leg alone."""
    with work_progress("recall", "queries") as progress:
        run = {}
        for place, (query, text) in enumerate(judged.queries.items()):
            rows = search(connection, name, text, top_k=100, candidates=100, stages=["dense"])
            run[query] = [row["id"] for row in rows]
            progress(place + 1, len(judged.queries))
    return measure(judged.qrels, run, RECALL)


def recall_of_means(corpus: Mapping[str, str], judged: Judgements, kept: Path) -> dict[str, float]:
    """Recall where a document is the mean of its windows' embeddings, weighted by their tokens."""
    encoder = load_encoder(model_of("embedding"))
    if not kept.exists():
        texts, found = list(corpus.values()), []
        with work_progress("means of windows", "documents") as progress:
            for place, text in enumerate(texts):
                made = encoder.encode([text], role="document", embeddings=True, tokens=False)
                found.append(made.embeddings)
                progress(place + 1, len(texts))
        np.save(kept, np.concatenate(found))
    means = np.load(kept)
    asked = encoder.encode(
        list(judged.queries.values()), role="query", embeddings=True, tokens=False
    )
    keys = np.array(list(corpus))
    orders = np.argsort(-(asked.embeddings @ means.T), axis=1, kind="stable")[:, :100]
    run = {q: list(keys[order]) for q, order in zip(judged.queries, orders, strict=True)}
    return measure(judged.qrels, run, RECALL)


def model_of(kind: str) -> ModelSpec:
    """The demo's model of this kind."""
    loader = {"embedding": "sentence_transformer"}
    found = next(model for model in MODELS if model["kind"] == kind)
    return ModelSpec(**({"loader": loader.get(kind)} | found))


def in_judged_parts(
    connection: psycopg.Connection, name: str, judged: Judgements, folder: Path, how: Any
) -> tuple[int, int]:
    """Of the relevant documents found, how many are shown with a passage that is, and all."""
    spans, corpus = read_spans(folder), read_corpus(folder)
    within = found = 0
    with work_progress("passages", "queries") as progress:
        for place, (query, text) in enumerate(judged.queries.items()):
            for row in search(connection, name, text, top_k=FOUND, **how):
                parts = spans[query].get(row["id"], [])
                start = row.get("passage_start") or 0
                end = row.get("passage_end") or len(corpus[row["id"]].content)
                found += bool(parts)
                within += any(
                    min(end, e) - max(start, b) >= min(end - start, e - b) / 2 for b, e in parts
                )
            progress(place + 1, len(judged.queries))
    return within, found


def bytes_of(connection: psycopg.Connection, name: str) -> dict[str, int]:
    """Bytes of the reranker's tables and indexes."""
    rows = connection.execute(
        "SELECT relname, pg_relation_size(oid) FROM pg_class"
        " WHERE relnamespace = 'pgrerank'::regnamespace AND relkind IN ('r', 'i')"
        " AND starts_with(relname, %s || '_') ORDER BY relname",
        (name,),
    )
    return dict(rows.fetchall())


def reencoded(corpus: Mapping[str, str], settings: Mapping[str, Any]) -> int:
    """Passages that a document of about 20,000 words gets anew with one more paragraph."""
    encoder = load_encoder(model_of("embedding"))
    size = settings.get("passage_size") or encoder.room
    how = {"size": size, "overlap": settings.get("passage_overlap") or 0}
    text = min(corpus.values(), key=lambda text: abs(len(text.split()) - WORDS[1]))
    paragraph = next(iter(corpus.values())).split("\n\n")[0]
    before = {one.text for one in cut(text, encoder.offsets, **how)}
    after = {one.text for one in cut(f"{text}\n\n{paragraph}", encoder.offsets, **how)}
    return len(after - before)


def times_of(
    connection: psycopg.Connection, name: str, queries: Sequence[str], how: Mapping[str, Any]
) -> list[float]:
    """Milliseconds of a search for each query, the best of some, by the reranker's settings."""
    found = [float("inf")] * len(queries)
    with work_progress("searching", "queries") as progress:
        for number in range(ROUNDS * len(queries)):
            place = number % len(queries)
            begun = time.perf_counter()
            search(connection, name, queries[place], **how)
            found[place] = min(found[place], (time.perf_counter() - begun) * 1000)
            progress(number + 1, ROUNDS * len(queries))
    return found


def encoded(
    connection: psycopg.Connection, name: str, texts: Mapping[str, str], wanted: str
) -> float:
    """Seconds until the documents whose keys begin with `wanted` are encoded."""
    begun = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.executemany(
            sql.SQL("INSERT INTO {} (id, body) VALUES (%s, %s)").format(sql.Identifier(name)),
            list(texts.items()),
        )
    pending = (
        "SELECT EXISTS (SELECT FROM pgrerank.pending"
        " WHERE reranker = %s AND starts_with(key, %s) AND failed_at IS NULL)"
    )
    while connection.execute(pending, (name, wanted)).fetchone() == (True,):
        time.sleep(0.02)
    return time.perf_counter() - begun


def forget(connection: psycopg.Connection, name: str) -> None:
    """Delete what was added."""
    connection.execute(
        sql.SQL("DELETE FROM {} WHERE id = {} OR starts_with(id, {})").format(
            sql.Identifier(name), LONG, COMER
        )
    )


def one_among_many(
    connection: psycopg.Connection, name: str, text: str, queries: Sequence[str], how: Any
) -> dict[str, Any]:
    """Times of searches with and without one very long document, and of ingest behind it."""
    comers = {f"{COMER}{number}": f"{query} {number}" for number, query in _cycled(queries)}
    forget(connection, name)
    times_of(connection, name, queries[:5], how)
    alone = encoded(connection, name, comers, COMER)
    without = times_of(connection, name, queries, how)
    forget(connection, name)
    behind = encoded(connection, name, {LONG: text} | comers, COMER)
    begun = time.perf_counter()
    encoded(connection, name, {}, LONG)
    took = time.perf_counter() - begun + behind
    with_it = times_of(connection, name, queries, how)
    forget(connection, name)
    found = {
        f"p{share}_{title}": float(np.percentile(times, share))
        for title, times in (("without", without), ("with", with_it))
        for share in (50, 95)
    }
    return found | {
        "p95_ratio": found["p95_with"] / found["p95_without"],
        "comers_s": alone,
        "comers_behind_it_s": behind,
        "long_s": took,
    }


def _cycled(queries: Sequence[str]) -> Iterator[tuple[int, str]]:
    return ((number, queries[number % len(queries)]) for number in range(COMERS))


def short_collection(folder: Path, output: Path, count: int) -> None:
    """The first documents of a collection, in BEIR's layout, with all of its queries."""
    if output.exists():
        return
    (output / "qrels").mkdir(parents=True)
    lines = (folder / "corpus.jsonl").read_text("utf-8").splitlines(keepends=True)[:count]
    (output / "corpus.jsonl").write_text("".join(lines), "utf-8")
    keys = {json.loads(line)["_id"] for line in lines}
    (output / "queries.jsonl").write_bytes((folder / "queries.jsonl").read_bytes())
    head, *judged = (folder / "qrels" / "test.tsv").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in judged if line.split("\t")[1] in keys]
    (output / "qrels" / "test.tsv").write_text(head + "".join(kept), "utf-8")


def settings_of(connection: psycopg.Connection, name: str) -> dict[str, Any]:
    """The reranker's settings."""
    rows = connection.execute("SELECT to_jsonb(s) FROM pgrerank.settings(%s) s", (name,))
    return dict(rows.fetchone()[0])  # type: ignore[index]


def parsed() -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--documents", type=int, default=150, help="long ones")
    parser.add_argument("--queries", type=int, default=60, help="so many of the judged ones")
    parser.add_argument("--short", type=int, default=10_000, help="short documents")
    parser.add_argument("--words", type=int, default=400_000, help="of one among them")
    parser.add_argument("--stages", help="of searches, with commas between them; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, default=default_folder().parent / "long_documents")
    parser.set_defaults(tune=False, report=None)
    return parser.parse_args()


def main() -> None:
    """Glue, encode, measure, print."""
    arguments = parsed()
    long = arguments.data / f"glued_{arguments.documents}_{arguments.seed}"
    short = arguments.data / f"short_{arguments.short}"
    glue(arguments.folders, long, documents=arguments.documents, seed=arguments.seed)
    short_collection(arguments.folders[-1], short, arguments.short)
    how = {"stages": arguments.stages.split(",")} if arguments.stages else {}
    corpus = {key: document.content for key, document in read_corpus(long).items()}
    with served([long, short], arguments.data / "server", "--cache", "0") as (connection, names):
        name, others = names
        judged = some_queries(connection, name, arguments.queries)
        evaluation = measured(connection, name, arguments, **how)
        dense = recall_of_dense(connection, name, judged)
        means = recall_of_means(corpus, judged, long / "means.npy")
        within, found = in_judged_parts(connection, name, judged, long, how)
        size = bytes_of(connection, name)
        anew = reencoded(corpus, settings_of(connection, name))
        words = " ".join(corpus.values()).split(" ")[: arguments.words]
        queries = list(some_queries(connection, others, arguments.queries).queries.values())
        among = one_among_many(connection, others, " ".join(words), queries, how)
    print(markdown([evaluation]))
    print(
        json.dumps(
            {
                "recall_gain": dense["R@100"] - means["R@100"],
                "recall_gain@10": dense["R@10"] - means["R@10"],
                "passage_in_judged": within / max(found, 1),
                "p95_ratio": among["p95_ratio"],
                "reencoded": anew,
                "recall": {"dense": dense, "mean of windows": means},
                "orders": {
                    order["name"]: order["measures"] | {"ms": order["total_ms"]["p50"]}
                    for order in evaluation["orders"]
                },
                "found": found,
                "bytes": size,
                "one_among_many": among,
            }
        )
    )


if __name__ == "__main__":
    main()
