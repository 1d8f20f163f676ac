"""How long documents are found, by which passage, and what they cost the others.

    python benchmarks/long_documents.py data/{scifact,npl} [--documents 150] [--queries 60]
        [--timed 20] [--short 10000] [--words 400000] [--stages dense,lexical,maxsim]

Glues the collections' documents into long ones (benchmarks/glued.py), encodes them with the demo's
models in an embedded server, and measures, on the queries of both:

* nDCG@10 and more of each stage, as benchmarks/stages.py does;
* recall by the dense leg, and by the mean of a document's passages, weighted by their tokens: what
  one embedding of a long document is. Nothing is encoded for it;
* of the relevant documents among the first ten, the share whose passage, as the search returns it,
  has half of a relevant part, or is half in one;
* bytes of tables and indexes, and of token vectors against those of texts that aren't cut;
* passages that are encoded anew where an ordinary paragraph, of two thirds of a passage at most, is
  appended to a document of 20,000 words: the most of some.

Then one document of --words words joins a table of --short documents as they are in the last of the
collections: the times of --timed searches with and without it, and how long a hundred more that
come right behind it take to be encoded. The server is kept in the user's cache, so that a second
run only asks. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from pgrerank.evaluation.traces import spread
from pgrerank.judgements import Judgements, read_beir, save_set
from pgrerank.judgements.beir import read_corpus
from pgrerank.models import ModelSpec, load_encoder
from pgrerank.passages import cut
from pgrerank.terminal import note, work_progress
from pgrerank.tokens import DType, pack_parts
from pgrerank.worker.cutting import LARGEST

RECALL = ("R@10", "R@100")
COMERS = 100
APPENDED = 10
ROUNDS = 3
LONG, COMER = "long", "comer-"


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Say how long a part of the work took."""
    begun = time.perf_counter()
    yield
    note(f"{title}: {time.perf_counter() - begun:.0f} s")


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


def recall_of_means(
    connection: psycopg.Connection, name: str, judged: Judgements
) -> dict[str, float]:
    """Recall where a document is the mean of its passages' embeddings, weighted by their tokens."""
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(1))
    for key, embedding, weight in connection.execute(
        sql.SQL(
            "SELECT p.key, p.embedding::text, sum(length(t.tokens)) FROM {} p"
            " JOIN {} t USING (key, passage) GROUP BY p.key, p.passage"
        ).format(*(sql.Identifier("pgrerank", f"{name}_1_{of}") for of in ("passages", "tokens")))
    ):
        sums[key] = sums[key] + float(weight) * np.array(json.loads(embedding))
    keys = np.array(list(sums))
    means = np.array([one / np.linalg.norm(one) for one in sums.values()])
    encoder = load_encoder(model_of("embedding"))
    asked = encoder.encode(
        list(judged.queries.values()), role="query", embeddings=True, tokens=False
    )
    orders = np.argsort(-(asked.embeddings @ means.T), axis=1, kind="stable")[:, :100]
    run = {q: list(keys[order]) for q, order in zip(judged.queries, orders, strict=True)}
    return measure(judged.qrels, run, RECALL)


def model_of(kind: str) -> ModelSpec:
    """The demo's model of this kind."""
    loader = {"embedding": "sentence_transformer"}
    found = next(model for model in MODELS if model["kind"] == kind)
    return ModelSpec(**({"loader": loader.get(kind)} | found))


def with_parts(connection: psycopg.Connection, name: str, folder: Path) -> None:
    """Write into the set of judgements where the relevant parts are."""
    judged = read_beir(folder)
    save_set(
        connection, name, Judgements(judged.queries, judged.qrels, read_spans(folder)), replace=True
    )


def bytes_of(connection: psycopg.Connection, name: str) -> dict[str, int]:
    """Bytes of the reranker's tables and indexes."""
    rows = connection.execute(
        "SELECT relname, pg_relation_size(oid) FROM pg_class"
        " WHERE relnamespace = 'pgrerank'::regnamespace AND relkind IN ('r', 'i')"
        " AND starts_with(relname, %s || '_') ORDER BY relname",
        (name,),
    )
    return dict(rows.fetchall())


def token_bytes(
    connection: psycopg.Connection, name: str, corpus: Mapping[str, str]
) -> dict[str, float]:
    """Bytes of token vectors over those of the same texts as one, and embeddings by passages."""
    encoder = load_encoder(model_of("embedding"))
    precision = settings_of(connection, name)["token_precision"]
    whole = 0
    for text in corpus.values():
        vectors = np.ones((len(encoder.offsets([text])[0]), encoder.token_dims), np.float32)
        whole += sum(map(len, pack_parts(vectors, DType(precision))))
    passages, tokens = (
        sql.Identifier("pgrerank", f"{name}_1_{of}") for of in ("passages", "tokens")
    )
    [stored] = connection.execute(
        sql.SQL("SELECT sum(length(tokens)) FROM {}").format(tokens)
    ).fetchone()
    [embeddings, wanted] = connection.execute(
        sql.SQL(
            "SELECT count(embedding), (SELECT count(*) FROM pgrerank.passages({})) FROM {}"
        ).format(name, passages)
    ).fetchone()
    return {"tokens_over_whole": int(stored) / whole, "embeddings_a_passage": embeddings / wanted}


def reencoded(
    corpus: Mapping[str, str], paragraphs: Sequence[str], settings: Mapping[str, Any]
) -> int:
    """The most passages that a document of about 20,000 words gets anew with one more paragraph."""
    encoder = load_encoder(model_of("embedding"))
    size = settings.get("passage_size") or min(LARGEST, encoder.room)
    how = {"size": size, "overlap": settings.get("passage_overlap") or 0}
    text = min(corpus.values(), key=lambda text: abs(len(text.split()) - WORDS[1]))
    before = {one.text for one in cut(text, encoder.offsets, **how)}
    lengths = map(len, encoder.offsets(paragraphs))
    ordinary = [p for p, length in zip(paragraphs, lengths, strict=True) if length <= size * 2 / 3]
    return max(
        len({one.text for one in cut(f"{text}\n\n{p}", encoder.offsets, **how)} - before)
        for p in spread(ordinary, APPENDED)
    )


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
    parser.add_argument("--timed", type=int, default=20, help="queries whose searches are timed")
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
    with ExitStack() as stack:
        with timed("encoding, where it is not done yet"):
            server = served([long, short], arguments.data / "server", "--cache", "0")
            connection, (name, others) = stack.enter_context(server)
        with_parts(connection, name, long)
        judged = some_queries(connection, name, arguments.queries)
        with timed("stages"):
            evaluation = measured(connection, name, arguments, **how)
        with timed("recall"):
            dense = recall_of_dense(connection, name, judged)
            means = recall_of_means(connection, name, judged)
        with timed("bytes and appended paragraphs"):
            size = bytes_of(connection, name) | token_bytes(connection, name, corpus)
            paragraphs = [document.content for document in read_corpus(short).values()]
            anew = reencoded(corpus, paragraphs, settings_of(connection, name))
        words = " ".join(corpus.values()).split(" ")[: arguments.words]
        queries = list(some_queries(connection, others, arguments.timed).queries.values())
        with timed("one among many"):
            among = one_among_many(connection, others, " ".join(words), queries, how)
    passages = evaluation["passages"]
    print(markdown([evaluation]))
    print(
        json.dumps(
            {
                "recall_gain": dense["R@100"] - means["R@100"],
                "recall_gain@10": dense["R@10"] - means["R@10"],
                "passage_in_judged": passages["within"] / max(passages["judged"], 1),
                "p95_ratio": among["p95_ratio"],
                "reencoded": anew,
                "recall": {"dense": dense, "mean of passages": means},
                "orders": {
                    order["name"]: order["measures"] | {"ms": order["total_ms"]["p50"]}
                    for order in evaluation["orders"]
                },
                "passages": passages,
                "bytes": size,
                "one_among_many": among,
            }
        )
    )


if __name__ == "__main__":
    main()
