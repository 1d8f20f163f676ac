"""MaxSim side by side: the kernel, its floor, and what else could be used in its place.

    python benchmarks/maxsim.py [--documents 10000] [--pools 100,1000,10000] [--rounds 7]

One embedded server, one run, the same data: documents of 128 token vectors of 128 dimensions, a
query of 32, all warm, one backend. Contestants take turns; a figure is the median of its turns. In
the database: the kernel over float16, int8 and bit; the floor, which reads the same bytes in the
same way; a loop over all pairs in C over vector[]; SQL over vector[]; the worker's engine with its
fetch. In memory, on one thread: maxsim-cpu, and maxsim of sentence-transformers; both also with
fetching float16 and making float32 of it. All scores are compared before anything is printed.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import psycopg
from synthetic import store_parts, unit_vectors

from pgrerank import embedded
from pgrerank.embedded.binaries import account, find
from pgrerank.embedded.extensions import extension_settings
from pgrerank.install import kernel, schema
from pgrerank.terminal import note, print_rows
from pgrerank.tokens import pack, pack_parts, unpack
from pgrerank.worker.child import worker_process

TOKENS, QUERY_TOKENS, DIMS = 128, 32, 128
PRECISIONS = ("float16", "int8", "bit")
RAW_BYTES = {"float16": TOKENS * DIMS * 2, "int8": TOKENS * DIMS, "bit": TOKENS * DIMS // 8}
SLOW = ("SQL", "worker, with its fetch")
Sizes = dict[str, tuple[float, float]]
"""By precision: mean bytes of a document as packed, and of the table's pages that it takes."""
Run = Callable[[], Any]
Contestant = Callable[[Sequence[int]], Run]
"""Gets ready for the documents of some keys; what it returns scores them, and is timed."""

# By cosine distance, as pgvector's examples of late interaction do, and by inner product, as
# pgrerank's own function in plain SQL does, which is cheaper.
SQL_MAXSIM = """
CREATE FUNCTION {name}(query vector[], document vector[]) RETURNS real
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT sum(best)::real FROM (
        SELECT max({similarity}) AS best
        FROM unnest(query) WITH ORDINALITY q (v, i) CROSS JOIN unnest(document) d (v)
        GROUP BY q.i) scores
$$
"""
SIMILARITIES = {"sql_cosine": "1 - (q.v <=> d.v)", "sql_inner_product": "-(q.v <#> d.v)"}


@contextlib.contextmanager
def server() -> Iterator[str]:
    """An embedded server with the kernel and its competitors; its connection string."""
    programs = find(account())
    with tempfile.TemporaryDirectory() as folder:
        settings, missing = extension_settings(Path(folder), programs, kernel=True)
        if missing is not None:
            raise SystemExit(f"no kernel to measure: {missing}")
        home = Path(folder) / "bench"
        kernel.build_into(programs / "pg_config", home, Path(__file__).parent / "native")
        Path(folder).chmod(0o755)
        settings = {
            "extension_control_path": f"{settings['extension_control_path']}:{home / 'share'}",
            "dynamic_library_path": f"{settings['dynamic_library_path']}:{home / 'lib'}",
            "shared_buffers": "3GB",
            "max_wal_size": "16GB",
            "autovacuum": "off",
        }
        with embedded.start(settings=settings) as started:
            yield started.dsn


def set_up(connection: psycopg.Connection, documents: np.ndarray) -> Sizes:
    """A reranker for each precision, with its parts stored; returns their sizes."""
    schema.install(connection)
    connection.execute("CREATE EXTENSION pgrerank_bench")
    for name, similarity in SIMILARITIES.items():
        connection.execute(SQL_MAXSIM.format(name=name, similarity=similarity))
    connection.execute("CREATE TABLE documents (id bigint PRIMARY KEY, body text)")
    connection.execute("SELECT pgrerank.register_model('tokens', 'late_interaction', 'none', 128)")
    connection.execute("SELECT pgrerank.register_model('embedding', 'embedding', 'none', 8)")
    sizes = {}
    for precision in PRECISIONS:
        connection.execute(
            "SELECT pgrerank.create_reranker(%s, 'documents', '{body}', embedding_model =>"
            " 'embedding', late_interaction_model => 'tokens', token_precision => %s)",
            (precision, precision),
        )
        packed = ((key, pack_parts(matrix, precision)) for key, matrix in enumerate(documents))
        stored = store_parts(connection, precision, "tokens", packed)
        [pages] = connection.execute(
            "SELECT pg_relation_size(%s::regclass)", (parts_of(precision),)
        ).fetchone()
        sizes[precision] = (stored / len(documents), pages / len(documents))
    store_arrays(connection, documents)
    connection.execute("VACUUM ANALYZE")
    return sizes


def parts_of(precision: str) -> str:
    """The table of a reranker's token vectors."""
    return f"pgrerank.{precision}_1_tokens"


def store_arrays(connection: psycopg.Connection, documents: np.ndarray) -> None:
    """The same as vector[] of pgvector, in its default storage."""
    connection.execute("CREATE TABLE arrays (key bigint PRIMARY KEY, tokens vector[])")
    [(oid,)] = connection.execute("SELECT 'vector'::regtype::oid::int").fetchall()
    element = np.dtype([("size", ">i4"), ("dims", ">i2"), ("unused", ">i2"), ("x", ">f4", (DIMS,))])
    rows = np.zeros(TOKENS, element)
    rows["size"], rows["dims"] = element.itemsize - 4, DIMS
    head = np.array([1, 0, oid, TOKENS, 1], ">i4").tobytes()
    with connection.cursor().copy("COPY arrays FROM STDIN (FORMAT binary)") as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for key, matrix in enumerate(documents):
            rows["x"] = matrix
            value = head + rows.tobytes()
            copy.write(
                np.array([2], ">i2").tobytes()
                + np.array([8], ">i4").tobytes()
                + np.array([key], ">i8").tobytes()
                + np.array([len(value)], ">i4").tobytes()
                + value
            )
        copy.write(b"\xff\xff")


def contestants(
    connection: psycopg.Connection, query: np.ndarray, documents: np.ndarray
) -> dict[str, Contestant]:
    """What scores the documents of some keys, by name."""
    packed = pack(query, "float16")
    vectors = [str(vector.tolist()) for vector in query]

    def in_database(statement: str, parameters: tuple[Any, ...]) -> Contestant:
        def ready(keys: Sequence[int]) -> Run:
            given = "{" + ",".join(map(str, keys)) + "}"
            return lambda: connection.execute(statement, (given, *parameters))

        return ready

    def kernel_over(precision: str) -> Contestant:
        return in_database(
            "SELECT keys, scores FROM pgrerank._maxsim_by_kernel("
            f"'{parts_of(precision)}', 'bigint', %s::text[], NULL, %b)",
            (packed,),
        )

    def floor_of(precision: str) -> Contestant:
        return in_database(
            "SELECT array_agg(key::text), array_agg(score) FROM (SELECT p.key,"
            f" sum(only_read(p.tokens)) AS score FROM {parts_of(precision)} p"
            " WHERE p.key = ANY (%s::bigint[]) GROUP BY p.key) scored",
            (),
        )

    def over_arrays(function: str) -> Contestant:
        return in_database(
            "WITH given AS MATERIALIZED ("
            "SELECT %s::bigint[] AS keys, %s::text[]::vector[] AS query)"
            f" SELECT array_agg(key::text), array_agg({function}(given.query, a.tokens))"
            " FROM given, arrays a WHERE a.key = ANY (given.keys)",
            (vectors,),
        )

    made: dict[str, Contestant] = {}
    for precision in PRECISIONS:
        made[f"kernel, {precision}"] = kernel_over(precision)
        made[f"floor, {precision}"] = floor_of(precision)
    made["pair loop in C over vector[]"] = over_arrays("pair_loop")
    made["SQL over vector[], cosine"] = over_arrays("sql_cosine")
    made["SQL over vector[], inner product"] = over_arrays("sql_inner_product")
    made["worker, with its fetch"] = in_database(
        f"SELECT keys, scores FROM pgrerank._maxsim_by_worker('{parts_of('int8')}', 'bigint',"
        " %s::text[], NULL, %b, clock_timestamp() + interval '5 min')",
        (packed,),
    )
    for name, score in in_memory(query).items():

        def in_memory_only(keys: Sequence[int], score: Score = score) -> Run:
            chosen = documents[keys]
            return lambda: (keys, score(chosen))

        def with_fetch(keys: Sequence[int], score: Score = score) -> Run:
            return lambda: (keys, score(fetch(connection, keys)))

        made[f"{name}, in memory"] = in_memory_only
        made[f"{name}, with a fetch"] = with_fetch
    return made


Score = Callable[[np.ndarray], Sequence[float]]


def in_memory(query: np.ndarray) -> dict[str, Score]:
    """Packages that score float32 documents of shape [n, tokens, dims]; those installed."""
    import torch
    from sentence_transformers.util import maxsim

    torch.set_num_threads(1)
    given = torch.from_numpy(query)
    found: dict[str, Score] = {
        "sentence-transformers": lambda documents: maxsim(given, torch.from_numpy(documents))[0]
    }
    try:
        import maxsim_cpu
    except ImportError:
        note("maxsim-cpu is not installed (pip install maxsim-cpu): left out")
        return found
    return {"maxsim-cpu": lambda documents: maxsim_cpu.maxsim_scores(query, documents), **found}


def fetch(connection: psycopg.Connection, keys: Sequence[int]) -> np.ndarray:
    """Documents in the order of keys, float32 of shape [n, tokens, dims], out of float16."""
    rows = connection.execute(
        "SELECT key, string_agg(tokens, '' ORDER BY part) FROM"
        f" {parts_of('float16')} WHERE key = ANY (%s) GROUP BY key",
        (list(keys),),
        binary=True,
    )
    found = dict(rows.fetchall())
    return np.stack([unpack(found[key]) for key in keys])


def scores_of(outcome: Any) -> dict[int, float]:
    """Scores by key, out of what a contestant gave."""
    keys, scores = outcome.fetchone() if isinstance(outcome, psycopg.Cursor) else outcome
    return {int(key): float(score) for key, score in zip(keys, scores, strict=True)}


def check(name: str, query: np.ndarray, documents: np.ndarray, ready: Contestant) -> None:
    """Refuse a contestant whose scores are not MaxSim of what it was given to read."""
    keys = list(range(0, len(documents), max(1, len(documents) // 50)))
    found = scores_of(ready(keys)())
    for key in keys:
        document = unpack(pack(documents[key], "bit")) if "bit" in name else documents[key]
        wanted = (query.astype(float) @ document.astype(float).T).max(axis=1).sum()
        if not abs(found[key] - wanted) < 0.003 * len(query):
            raise SystemExit(f"{name}: document {key} scores {found[key]}, expected {wanted}")


def warm(runs: dict[str, Contestant], documents: int) -> None:
    """Have this backend touch all that is stored: the first read of a page is a page fault."""
    note("warming up")
    for name, run in runs.items():
        if name.startswith(("floor", "pair loop")):
            run(list(range(documents)))()


def race(
    runs: dict[str, Contestant], documents: int, pool: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Median and spread (90th percentile over median) of microseconds a candidate.

    Whoever comes first to a document leaves it in the processor's cache for the next, so each turn
    has an order of its own. A call over other documents goes before the one that is timed, which
    then finds processes awake and code in the cache, as in a server that has work.
    """
    generator = np.random.default_rng(pool)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        others, keys = (generator.choice(documents, pool, replace=False).tolist() for _ in "ab")
        for name in generator.permutation(list(runs)).tolist():
            slow = name.startswith(SLOW) and pool > 1000
            if slow and turn:
                continue
            runs[name](others[: min(pool, 100) if slow else pool])()
            run = runs[name](keys)
            started = time.perf_counter()
            run()
            times[name].append(1e6 * (time.perf_counter() - started) / pool)
    return {
        name: (median(taken), float(np.quantile(taken, 0.9)) / median(taken))
        for name, taken in times.items()
    }


def report(
    sizes: Sizes, found: dict[int, dict[str, tuple[float, float]]], engine: str
) -> dict[str, Any]:
    """Print the tables; returns what the last line says."""
    pools = list(found)
    base = 1000 if 1000 in found else pools[-1]
    int8 = found[base]["kernel, int8"][0]
    rows = [
        [
            name,
            *(f"{found[pool][name][0]:.2f}" for pool in pools),
            f"{took / int8:.2f}",
            f"{spread:.2f}",
        ]
        for name, (took, spread) in found[base].items()
    ]
    columns = ["microseconds a candidate", *map(str, pools), f"over int8 at {base}", "p90 / median"]
    print_rows(columns, rows, as_json=False)
    print_rows(
        ["precision", "bytes a document", "over the raw matrix", "its pages, over the matrix"],
        [
            [name, f"{size:.0f}", f"{size / RAW_BYTES[name]:.4f}", f"{pages / RAW_BYTES[name]:.4f}"]
            for name, (size, pages) in sizes.items()
        ],
        as_json=False,
    )
    over = {name: took / int8 for name, (took, _) in found[base].items()}
    ratios: dict[str, Any] = {
        "engine": engine,
        "candidates": base,
        "int8_microseconds": round(int8, 3),
        "sql_over_int8": over["SQL over vector[], cosine"],
        "sql_inner_product_over_int8": over["SQL over vector[], inner product"],
        "pairloop_over_int8": over["pair loop in C over vector[]"],
        "int8_over_floor": over["kernel, int8"] / over["floor, int8"],
        "bit_over_floor": over["kernel, bit"] / over["floor, bit"],
        "float16_over_floor": over["kernel, float16"] / over["floor, float16"],
        "worker_over_int8": over["worker, with its fetch"],
        "sentence_transformers_over_int8": over["sentence-transformers, in memory"],
        "bytes_over_raw": {name: size / RAW_BYTES[name] for name, (size, _) in sizes.items()},
        "pages_over_raw": {name: pages / RAW_BYTES[name] for name, (_, pages) in sizes.items()},
    }
    if "maxsim-cpu, in memory" in over:
        ratios["maxsim_cpu_over_int8"] = over["maxsim-cpu, in memory"]
        ratios["maxsim_cpu_with_fetch_over_int8"] = over["maxsim-cpu, with a fetch"]
    if 1000 in found and 10000 in found:
        ratios["pool_10000_over_1000"] = 10 * found[10000]["kernel, int8"][0] / int8
    return ratios


def main() -> None:
    """Set up, check, race, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--pools", default="100,1000,10000", help="candidates, by commas")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    pools = [int(pool) for pool in arguments.pools.split(",")]
    if max(pools) > arguments.documents:
        parser.error(f"--pools wants up to --documents, {arguments.documents}, not {max(pools)}")
    generator = np.random.default_rng(0)
    documents = unit_vectors(generator, arguments.documents, TOKENS, DIMS)
    query = unit_vectors(generator, QUERY_TOKENS, DIMS)
    with (
        server() as dsn,
        tempfile.TemporaryDirectory() as logs,
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        note("storing documents")
        sizes = set_up(connection, documents)
        connection.execute("SET max_parallel_workers_per_gather = 0")
        engine = schema.maxsim_engine(connection)
        with worker_process(dsn, Path(logs) / "worker.log", "--no-ingest"):
            runs = contestants(connection, query, documents)
            for name, run in runs.items():
                if not name.startswith("floor"):
                    check(name, query, documents, run)
            warm(runs, len(documents))
            found = {}
            for pool in pools:
                note(f"{pool} candidates")
                found[pool] = race(runs, len(documents), pool, arguments.rounds)
    ratios = report(sizes, found, engine)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
