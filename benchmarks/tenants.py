"""What recall costs and finds as tenants of one table grow.

    python benchmarks/tenants.py [--documents 1000000] [--calls 10000] [--seconds 2]

One embedded server with made-up vectors of 128 dimensions, about half of whose documents belong to
tenants of 10, 30, 100 … 100,000 documents and the rest to tenants of 10. First, by size of tenant
and without `tenant_column`: the milliseconds of dense recall of 100 exactly and by HNSW, which is
what the crossover between them was chosen by. Then as the product chooses, without and with
`tenant_column`, whose indexes `tenant_index_changes` makes: p50 and p95, and of so many calls,
spread over the tenants, how many returned fewer than 100 documents or than the tenant has without
saying so. No model takes part. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
from synthetic import store_embeddings, unit_vectors

from pgrerank import embedded
from pgrerank.install import schema
from pgrerank.terminal import document_progress, note, print_rows

DIMS, TOPICS, CANDIDATES = 128, 200, 100
PLAIN, BY_TENANT = "plain", "by_tenant"
"""Rerankers over the same documents, without and with `tenant_column`."""
SEARCH = (
    "SELECT count(*), bool_or(degraded) FROM pgrerank.{name}_search(NULL, top_k => %(top_k)s,"
    " query_embedding => %(query)s::vector, filter => %(filter)s, recall => %(recall)s,"
    " stages => '{{dense}}', timeout => '1 min')"
)


def sizes_of_tenants(documents: int) -> list[int]:
    """How many documents each tenant has: 10, 30, 100 … a tenth of all, then tens."""
    steps = [size for power in range(1, 7) for size in (10**power, 3 * 10**power)]
    large = [size for size in steps if size <= documents // 10]
    rest = max(0, documents - sum(large))
    return large + [10] * (rest // 10)


def fill(connection: psycopg.Connection, sizes: Sequence[int]) -> None:
    """Both rerankers' documents, stored where a worker would store them."""
    generator = np.random.default_rng(0)
    tenants = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    topics = unit_vectors(generator, TOPICS, DIMS)
    connection.execute("CREATE TABLE documents (id bigint PRIMARY KEY, body text, tenant int)")
    connection.execute(
        "SELECT pgrerank.register_model('embedding', 'embedding', 'none', %s)", (DIMS,)
    )
    for name, column in ((PLAIN, None), (BY_TENANT, "tenant")):
        connection.execute(
            "SELECT pgrerank.create_reranker(%s, 'documents', '{body}', tenant_column => %s,"
            " embedding_model => 'embedding')",
            (name, column),
        )
    connection.execute("SET session_replication_role = replica")  # no triggers: nothing to encode
    with connection.cursor().copy("COPY documents FROM STDIN") as copy:
        for key, tenant in enumerate(tenants.tolist()):
            copy.write_row((key, f"document {key}", tenant))
    connection.execute("CREATE INDEX ON documents (tenant)")
    indexes = connection.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid IN ('pgrerank.plain_1_passages'::regclass,"
        " 'pgrerank.by_tenant_1_passages'::regclass)"
        " AND NOT indisprimary ORDER BY indexrelid DESC"
    ).fetchall()
    for index, _ in indexes:
        connection.execute(f"DROP INDEX {index}")
    noise = unit_vectors(generator, len(tenants), DIMS)
    vectors = topics[generator.integers(TOPICS, size=len(tenants))] + noise
    store_embeddings(connection, PLAIN, vectors)
    connection.execute("RESET session_replication_role")
    connection.execute(
        "INSERT INTO pgrerank.by_tenant_1_passages"
        " (key, passage, embedding, hash, cut_hash, tenant)"
        " SELECT p.key, p.passage, p.embedding, p.hash, p.cut_hash, d.tenant"
        " FROM pgrerank.plain_1_passages p JOIN documents d ON d.id = p.key ORDER BY p.key"
    )
    connection.execute(
        "INSERT INTO pgrerank.by_tenant_1 (key, content_hash, tenant)"
        " SELECT d.id, '-', d.tenant FROM documents d"
    )
    connection.execute("SET maintenance_work_mem = '4GB'")
    for _, definition in indexes:
        note(definition)
        connection.execute(definition)
    connection.execute("VACUUM ANALYZE")


def queries(seed: int) -> Iterator[str]:
    """Query vectors without end, near the topics of documents."""
    generator = np.random.default_rng([1, seed])
    topics = unit_vectors(np.random.default_rng(0), TOPICS, DIMS)
    while True:
        yield str((topics[generator.integers(TOPICS)] + unit_vectors(generator, DIMS)).tolist())


def asked(
    connection: psycopg.Connection, reranker: str, tenant: int, query: str, recall: str
) -> tuple[float, int, bool]:
    """The milliseconds of one call, how many rows it returned, and whether it was degraded."""
    begun = time.perf_counter()
    [count, degraded] = connection.execute(
        SEARCH.format(name=reranker),
        {
            "top_k": CANDIDATES,
            "query": query,
            "filter": json.dumps({"tenant": tenant}),
            "recall": recall,
        },
    ).fetchone()
    return 1000 * (time.perf_counter() - begun), count, bool(degraded)


def timed(
    connection: psycopg.Connection, reranker: str, tenant: int, recall: str, seconds: float
) -> dict[str, float]:
    """p50 and p95 in milliseconds, after some calls that fill caches; the fewest rows returned."""
    stream, end, times, counts = queries(tenant), time.monotonic() + 1.3 * seconds, [], []
    while time.monotonic() < end or len(times) < 10:
        took, count, _ = asked(connection, reranker, tenant, next(stream), recall)
        if end - time.monotonic() < seconds:
            times.append(took)
        counts.append(count)
    cuts = statistics.quantiles([*times, *times[:1]], n=20)
    return {"p50": cuts[9], "p95": cuts[18], "fewest": min(counts)}


def shortfalls(
    connection: psycopg.Connection, reranker: str, sizes: Sequence[int], calls: int
) -> dict[str, int]:
    """Of so many calls: those with fewer rows than there are, by whether they said so."""
    chance, stream = random.Random(0), queries(0)
    large = sum(size > 10 for size in sizes)
    short = {"short": 0, "short_and_degraded": 0}
    with document_progress(f"asking {reranker}") as progress:
        for call in range(calls):
            tenant = chance.randrange(2 * large)
            _, count, degraded = asked(connection, reranker, tenant, next(stream), "auto")
            if count < min(CANDIDATES, sizes[tenant]):
                short["short_and_degraded" if degraded else "short"] += 1
            progress(call + 1, calls)
    return short


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=10_000, help="that are looked at for rows")
    parser.add_argument("--seconds", type=float, default=2, help="for each measurement")
    arguments = parser.parse_args()
    sizes = sizes_of_tenants(arguments.documents)
    large = [tenant for tenant, size in enumerate(sizes) if tenant == 0 or size > 10]
    settings = {"shared_buffers": "4GB", "max_wal_size": "16GB", "autovacuum": "off"}
    with (
        embedded.start(settings=settings) as server,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        schema.install(connection)
        fill(connection, sizes)
        rows: list[dict[str, Any]] = [{"documents": sizes[tenant]} for tenant in large]
        for tenant, row in zip(large, rows, strict=True):
            for recall in ("exact", "hnsw", "auto"):
                row[recall] = timed(connection, PLAIN, tenant, recall, arguments.seconds)
        for [statement] in connection.execute(
            "SELECT statement FROM pgrerank.tenant_index_changes()"
        ).fetchall():
            note(statement)
            connection.execute(statement)
        for tenant, row in zip(large, rows, strict=True):
            row["tenant_column"] = timed(connection, BY_TENANT, tenant, "auto", arguments.seconds)
        short = {
            name: shortfalls(connection, name, sizes, arguments.calls)
            for name in (PLAIN, BY_TENANT)
        }
    ways = ("exact", "hnsw", "auto", "tenant_column")
    print_rows(
        ["documents", *(f"{way} {cut}" for way in ways for cut in ("p50", "p95"))],
        [
            [row["documents"], *(f"{row[way][cut]:.1f}" for way in ways for cut in ("p50", "p95"))]
            for row in rows
        ],
        as_json=False,
    )
    print(json.dumps({"rows": rows, "calls": arguments.calls, "shortfalls": short}))


if __name__ == "__main__":
    main()
