"""Whether a document's best passage says more of it than the document as one.

    python benchmarks/passages.py data/scifact [--documents 1500] [--queries 300]

Encodes documents of a collection twice with the demo's embedding model: as one, where the windows
of a longer text are joined (the mean of their embeddings, all of their token vectors), and by
passages, as a worker cuts them. Then ranks all by their embeddings, and the first hundred by
MaxSim, in memory and exactly. A document's score by passages is that of the best or, beside it,
four fifths of that and one of the second. No database takes part. The documents that are judged are
all taken, others at random. Prints nDCG@10 and R@100; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from long_documents import model_of

from pgrerank.evaluation.measures import measure
from pgrerank.judgements.beir import read_corpus
from pgrerank.judgements.files import read_beir
from pgrerank.models import Encoder, load_encoder
from pgrerank.passages import cut
from pgrerank.terminal import note, work_progress
from pgrerank.worker.cutting import LARGEST

BATCH, HEAD = 64, 100
MEASURES = ("nDCG@10", "R@100")


class Vectors(NamedTuple):
    """A text's embedding, and its token vectors."""

    embedding: np.ndarray
    tokens: np.ndarray


def encoded(encoder: Encoder, texts: Sequence[str], title: str) -> list[Vectors]:
    """The vectors of documents."""
    found: list[Vectors] = []
    with work_progress(title, "texts") as progress:
        for begin in range(0, len(texts), BATCH):
            made = encoder.encode(
                texts[begin : begin + BATCH], role="document", embeddings=True, tokens=True
            )
            found += map(Vectors, made.embeddings, made.tokens)
            progress(len(found), len(texts))
    return found


def maxsim(query: np.ndarray, document: np.ndarray) -> float:
    """The sum over the query's vectors of the largest product with any of the document's."""
    return float((document @ query.T).max(axis=0).sum())


def ranked(scores: np.ndarray, keys: Sequence[str]) -> list[str]:
    """Keys by their scores, the highest first."""
    return [keys[place] for place in np.argsort(-scores, kind="stable")]


def orders(query: Vectors, keys: Sequence[str], parts: Sequence[Sequence[Vectors]]) -> dict:
    """The first hundred by embeddings, and those again by MaxSim, of documents' parts."""
    near = np.array([max(float(one.embedding @ query.embedding) for one in own) for own in parts])
    head = np.argsort(-near, kind="stable")[:HEAD]
    sums = [sorted(maxsim(query.tokens, one.tokens) for one in parts[p]) for p in head]
    best = np.array([own[-1] for own in sums])
    second = np.array([own[-2] if len(own) > 1 else own[-1] for own in sums])
    named = [keys[place] for place in head]
    return {
        "dense": named,
        "MaxSim": ranked(best, named),
        "MaxSim, 4/5 and 1/5": ranked(0.8 * best + 0.2 * second, named),
    }


def main() -> None:
    """Cut, encode, rank, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=300)
    arguments = parser.parse_args()
    judged = read_beir(arguments.folder)
    queries = dict(list(judged.queries.items())[: arguments.queries])
    qrels = {query: judged.qrels[query] for query in queries}
    corpus = {key: one.content for key, one in read_corpus(arguments.folder).items()}
    wanted = {key for own in qrels.values() for key in own} & corpus.keys()
    others = sorted(corpus.keys() - wanted)
    random.Random(1).shuffle(others)
    keys = sorted(wanted) + others[: max(0, arguments.documents - len(wanted))]
    encoder = load_encoder(model_of("embedding"))
    size = min(LARGEST, encoder.room)
    cuts = [cut(corpus[key], encoder.offsets, size=size) for key in keys]
    several = sum(len(own) > 1 for own in cuts)
    note(f"{len(keys)} documents, {several} of several passages, {sum(map(len, cuts))} passages")
    as_one = [[one] for one in encoded(encoder, [corpus[key] for key in keys], "documents")]
    passages = iter(encoded(encoder, [one.text for own in cuts for one in own], "passages"))
    by_passages = [[next(passages) for _ in own] for own in cuts]
    made = encoder.encode(list(queries.values()), role="query", embeddings=True, tokens=True)
    asked = [Vectors(*pair) for pair in zip(made.embeddings, made.tokens, strict=True)]
    found = {}
    for name, parts in (("as one", as_one), ("by passages", by_passages)):
        runs = [orders(query, keys, parts) for query in asked]
        for order in runs[0]:
            run = {query: one[order] for query, one in zip(queries, runs, strict=True)}
            found[f"{order}, {name}"] = measure(qrels, run, MEASURES)
    for name, values in found.items():
        print(f"{name:34}", "  ".join(f"{m} {value:.4f}" for m, value in values.items()))
    print(json.dumps({"documents": len(keys), "several": several, "measures": found}))


if __name__ == "__main__":
    main()
