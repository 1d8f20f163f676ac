"""A hundred queries in one call against a hundred calls, with and without a cross-encoder.

    python benchmarks/many.py data/scifact [--queries 100] [--cross-encoded 10]

The server and the corpus are those of benchmarks/stages.py; the worker keeps no results. For each
set of stages it prints the seconds of single calls and of NAME_search_many, the ratio, and by
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
                rows.append(
                    {
                        "collection": name,
                        "stages": title,
                        "queries": len(some),
                        "single calls, s": alone,
                        "one call, s": at_once,
                        "times as fast": alone / at_once,
                        "ms of a call": times,
                    }
                )
    print_rows(list(rows[0]), [list(row.values()) for row in rows], as_json=False)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
