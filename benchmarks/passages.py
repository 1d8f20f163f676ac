"""Whether a document's best passage says more of it than the document as one.

    python benchmarks/passages.py data/{scifact,cranfield,npl} [--documents 1500] [--queries 300]
        [--read 20]

Encodes documents of each collection twice with the demo's embedding model: as one, where the
windows of a longer text are joined (the mean of their embeddings, all of their token vectors), and
by passages, as a worker cuts them. What is one passage is encoded once. Then ranks all by their
embeddings, the first hundred by MaxSim, and the first --read of those by the demo's cross-encoder,
in memory and exactly. A document's score by passages is that of the best or, beside it for MaxSim,
four fifths of that and one of the second; the cross-encoder reads the whole document, or the
passage that is best by MaxSim. No database takes part. The documents that are judged are all taken,
others at random. Prints nDCG@10 and R@100; the last line is one JSON object, with what each stage
gains by passages.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from long_documents import model_of

from pgrerank.evaluation.measures import measure
from pgrerank.judgements.beir import read_corpus
from pgrerank.judgements.files import read_beir
from pgrerank.models import Encoder, Reranker, load_encoder, load_reranker
from pgrerank.passages import cut
from pgrerank.terminal import note, work_progress
from pgrerank.worker.cutting import LARGEST

BATCH, HEAD = 64, 100
MEASURES = ("nDCG@10", "R@100")


STAGES = ("dense", "MaxSim", "cross-encoder")


class Vectors(NamedTuple):
    """A text, its embedding, and its token vectors."""

    text: str
    embedding: np.ndarray
    tokens: np.ndarray


def encoded(encoder: Encoder, texts: Sequence[str], title: str) -> dict[str, Vectors]:
    """The vectors of texts, each of which is encoded once."""
    found: dict[str, Vectors] = {}
    unique = list(dict.fromkeys(texts))
    with work_progress(title, "texts") as progress:
        for begin in range(0, len(unique), BATCH):
            batch = unique[begin : begin + BATCH]
            made = encoder.encode(batch, role="document", embeddings=True, tokens=True)
            rows = zip(batch, made.embeddings, made.tokens, strict=True)
            found |= {row[0]: Vectors(*row) for row in rows}
            progress(len(found), len(unique))
    return found


def maxsim(query: np.ndarray, document: np.ndarray) -> float:
    """The sum over the query's vectors of the largest product with any of the document's."""
    return float((document @ query.T).max(axis=0).sum())


def ranked(scores: np.ndarray, keys: Sequence[str]) -> list[str]:
    """Keys by their scores, the highest first."""
    return [keys[place] for place in np.argsort(-scores, kind="stable")]


class Reading:
    """A cross-encoder that reads no pair twice."""

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        self._known: dict[tuple[str, str], float] = {}

    def scores(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """The scores of texts for a query."""
        pairs = [(query, text) for text in texts]
        unread = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if unread:
            self._known |= zip(unread, map(float, self._reranker.score(unread)), strict=True)
        return np.array([self._known[pair] for pair in pairs])


def orders(
    query: Vectors,
    keys: Sequence[str],
    parts: Sequence[Sequence[Vectors]],
    reading: Reading,
    read: int,
) -> dict[str, list[str]]:
    """The first hundred by embeddings, those again by MaxSim, and the first of these as read."""
    near = np.array([max(float(one.embedding @ query.embedding) for one in own) for own in parts])
    head = np.argsort(-near, kind="stable")[:HEAD]
    sums = [[maxsim(query.tokens, one.tokens) for one in parts[place]] for place in head]
    best = np.array([max(own) for own in sums])
    second = np.array([sorted(own)[-2] if len(own) > 1 else own[0] for own in sums])
    named = [keys[place] for place in head]
    by_maxsim = np.argsort(-best, kind="stable")
    texts = [parts[head[n]][int(np.argmax(sums[n]))].text for n in by_maxsim[:read]]
    by_reading = np.argsort(-reading.scores(query.text, texts), kind="stable")
    order = [*by_maxsim[:read][by_reading], *by_maxsim[read:]]
    return {
        "dense": named,
        "MaxSim": [named[n] for n in by_maxsim],
        "MaxSim, 4/5 and 1/5": ranked(0.8 * best + 0.2 * second, named),
        "cross-encoder": [named[n] for n in order],
    }


def measured(folder: Path, encoder: Encoder, reading: Reading, arguments: Any) -> dict[str, Any]:
    """A collection both ways."""
    judged = read_beir(folder)
    queries = dict(list(judged.queries.items())[: arguments.queries])
    qrels = {query: judged.qrels[query] for query in queries}
    corpus = {key: one.content for key, one in read_corpus(folder).items()}
    wanted = {key for own in qrels.values() for key in own} & corpus.keys()
    others = sorted(corpus.keys() - wanted)
    random.Random(1).shuffle(others)
    keys = sorted(wanted) + others[: max(0, arguments.documents - len(wanted))]
    size = min(LARGEST, encoder.room)
    cuts = [[one.text for one in cut(corpus[k], encoder.offsets, size=size)] for k in keys]
    keys = [key for key, own in zip(keys, cuts, strict=True) if own]
    cuts = [own for own in cuts if own]
    several = sum(len(own) > 1 for own in cuts)
    note(f"{folder.name}: {len(keys)} documents, {several} of several passages")
    texts = [*(corpus[key] for key in keys), *(text for own in cuts for text in own)]
    vectors = encoded(encoder, texts, folder.name)
    ways = {
        "as one": [[vectors[corpus[key]]] for key in keys],
        "by passages": [[vectors[text] for text in own] for own in cuts],
    }
    made = encoder.encode(list(queries.values()), role="query", embeddings=True, tokens=True)
    asked = [
        Vectors(*row) for row in zip(queries.values(), made.embeddings, made.tokens, strict=True)
    ]
    found: dict[str, dict[str, float]] = {}
    for way, parts in ways.items():
        runs = []
        with work_progress(f"{folder.name} {way}", "queries") as progress:
            for query in asked:
                runs.append(orders(query, keys, parts, reading, arguments.read))
                progress(len(runs), len(asked))
        for order in runs[0]:
            run = {query: one[order] for query, one in zip(queries, runs, strict=True)}
            found[f"{order}, {way}"] = measure(qrels, run, MEASURES)
    gains = {
        stage: found[f"{stage}, by passages"]["nDCG@10"] - found[f"{stage}, as one"]["nDCG@10"]
        for stage in STAGES
    }
    return {"documents": len(keys), "several": several, "measures": found, "gains": gains}


def main() -> None:
    """Cut, encode, rank, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--documents", type=int, default=1500, help="of each collection")
    parser.add_argument("--queries", type=int, default=300, help="of each collection")
    parser.add_argument("--read", type=int, default=20, help="by the cross-encoder, for each query")
    arguments = parser.parse_args()
    encoder = load_encoder(model_of("embedding"))
    reading = Reading(load_reranker(model_of("cross_encoder")))
    found = {one.name: measured(one, encoder, reading, arguments) for one in arguments.folders}
    for folder, of_folder in found.items():
        for name, values in of_folder["measures"].items():
            shown = "  ".join(f"{measure} {value:.4f}" for measure, value in values.items())
            print(f"{folder:10} {name:34} {shown}")
    least = min(gain for of_folder in found.values() for gain in of_folder["gains"].values())
    print(json.dumps({"least_gain": least, "collections": found}))


if __name__ == "__main__":
    main()
