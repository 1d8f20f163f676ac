"""A hundred queries in one call against a hundred calls, with and without a cross-encoder.

    python benchmarks/many.py data/scifact [--queries 100] [--cross-encoded 10]

The server and the corpus are those of benchmarks/stages.py; the worker keeps no results. For each
set of stages it prints the seconds of single calls, of NAME_search_many, and of what no call can do
without: the models at work, and one set-based statement for all queries that does nothing but find
nearest documents, find documents by words, and score them by MaxSim, each read once for all. Then
how many times as fast the one call is, and how many times as fast nothing but that would be; and by
trace, how many milliseconds of a single call each stage takes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import psycopg
from psycopg import sql
from stages import add_collections, served, some_queries

from pgrerank.evaluation.traces import ask
from pgrerank.evaluation.variant import Variant
from pgrerank.terminal import print_rows

STAGES = {
    "lexical": ["lexical"],
    "dense, lexical": ["dense", "lexical"],
    "dense, lexical, MaxSim": ["dense", "lexical", "maxsim"],
    "and cross-encoder": ["dense", "lexical", "maxsim", "cross_encoder"],
}


def single(connection: psycopg.Connection, name: str, queries: Sequence[str], given: Any) -> float:
    """Seconds of a call for each query."""
    function = sql.Identifier("pgrerank", f"{name}_search")
    statement = sql.SQL("SELECT * FROM {}(%s, stages => %s, timeout => '5 min')").format(function)
    begun = time.perf_counter()
    for query in queries:
        connection.execute(statement, (query, given)).fetchall()
    return time.perf_counter() - begun


def together(
    connection: psycopg.Connection, name: str, queries: Sequence[str], given: Any
) -> float:
    """Seconds of one call for all."""
    function = sql.Identifier("pgrerank", f"{name}_search_many")
    statement = sql.SQL("SELECT * FROM {}(%s, stages => %s, timeout => '5 min')").format(function)
    begun = time.perf_counter()
    connection.execute(statement, (list(queries), given)).fetchall()
    return time.perf_counter() - begun


LEGS = {
    "dense": """
        SELECT q.number, n.key FROM query q, LATERAL (
            SELECT s.key FROM pgrerank.{passages} s
            ORDER BY s.embedding <=> q.embedding LIMIT 100) n""",
    "lexical": """
        SELECT q.number, n.key FROM query q, LATERAL (
            SELECT s.key FROM pgrerank.{words} s WHERE s.lexemes @@ q.words
            ORDER BY s.weights <#> q.weights LIMIT 100) n""",
}
BARE = """
    WITH query AS MATERIALIZED (
        SELECT q.number, q.embedding::halfvec, q.tokens, q.words::tsquery, q.weights::sparsevec
        FROM unnest(%s::text[], %s::bytea[], %s::text[], %s::text[])
            WITH ORDINALITY q (embedding, tokens, words, weights, number)),
    found AS MATERIALIZED ({found})
    {scored}"""
SCORED = {
    False: "SELECT count(*) FROM found",
    True: """
    SELECT sum(u.score)
    FROM (SELECT f.key, array_agg(f.number::int) AS numbers FROM found f GROUP BY 1) f, LATERAL (
        SELECT pgrerank._maxsim_each(%s, f.numbers, t.tokens) AS scores FROM pgrerank.{tokens} t
        WHERE t.key = f.key GROUP BY t.passage) s, unnest(s.scores) u (score)""",
}
WORDS = """
    SELECT string_agg(quote_literal(w.lexeme), ' | '),
        pgrerank._sparse(array_agg(w.lexeme), array_agg(w.idf))::text
    FROM pgrerank._generation(%s, 1) g
    CROSS JOIN unnest(%s::text[]) WITH ORDINALITY q (query, number)
    LEFT JOIN LATERAL pgrerank._query_words(g, pgrerank._word_statistics(g), q.query) w ON true
    GROUP BY q.number ORDER BY q.number"""
ENCODED = """
    SELECT c.query_embedding::text, c.query_tokens
    FROM pgrerank._generation(%s, 1) g, unnest(pgrerank._with_vectors(g, ARRAY(
        SELECT jsonb_populate_record(
            NULL::pgrerank.search_call, jsonb_build_object('query', q.query))
        FROM unnest(%s::text[]) q (query)), true, %s, NULL, now() + interval '5 min')) c"""


def bare(
    connection: psycopg.Connection, name: str, queries: Sequence[str], stages: Sequence[str]
) -> float:
    """Seconds of the embedding models, for all at once, and of one statement for all."""
    tables = {kind: sql.Identifier(f"{name}_1_{kind}") for kind in ("passages", "words", "tokens")}
    statement = sql.SQL(BARE).format(
        found=sql.SQL(" UNION ").join(
            sql.SQL(LEGS[leg]).format(**tables) for leg in LEGS if leg in stages
        ),
        scored=sql.SQL(SCORED["maxsim" in stages]).format(**tables),
    )
    words = connection.execute(WORDS, (name, list(queries))).fetchall()
    connection.execute("SET hnsw.ef_search = 200")
    begun = time.perf_counter()
    encoded: list[Any] = [(None, None)] * len(queries)
    if "dense" in stages:
        encoded = connection.execute(ENCODED, (name, list(queries), "maxsim" in stages)).fetchall()
    given = [list(column) for column in zip(*encoded, strict=True)]
    given += [list(column) for column in zip(*words, strict=True)]
    given += [given[1]] if "maxsim" in stages else []
    connection.execute(statement, given).fetchone()
    taken = time.perf_counter() - begun
    connection.execute("RESET hnsw.ef_search")
    return taken


def main() -> None:
    """Time both, three times each, the best of which counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_collections(parser)
    parser.add_argument("--cross-encoded", type=int, default=10, help="queries that it reads for")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with served(arguments.folders, arguments.data, "--cache", "0") as (connection, names):
        for name in names:
            queries = some_queries(connection, name, arguments.queries or 100).queries
            for title, stages in STAGES.items():
                is_dear = "cross_encoder" in stages
                some = dict(list(queries.items())[: arguments.cross_encoded if is_dear else None])
                variant = Variant(name, timeout="5 min", stages=stages, early_exit=None)
                traces = ask(connection, variant, some)
                times = {
                    stage: round(
                        median(trace.times.get(stage, 0.0) for trace in traces.values()), 1
                    )
                    for stage in ("encode_query", *stages, "total")
                }
                asked = (connection, name, list(some.values()), stages)
                tries = 1 if is_dear else 3
                alone = min(single(*asked) for _ in range(tries))
                at_once = min(together(*asked) for _ in range(tries))
                least = min(bare(*asked) for _ in range(tries)) + sum(
                    trace.times.get("cross_encoder", 0.0) / 1000 for trace in traces.values()
                )
                rows.append(
                    {
                        "collection": name,
                        "stages": title,
                        "queries": len(some),
                        "single calls, s": alone,
                        "one call, s": at_once,
                        "bare statements and models, s": least,
                        "times as fast": alone / at_once,
                        "at most": alone / least,
                        "over the bare ones": at_once / least,
                        "ms of a call": times,
                    }
                )
    print_rows(list(rows[0]), [list(row.values()) for row in rows], as_json=False)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
