"""Which weights of the stages rank best without judgements: how the default blend was chosen.

    python benchmarks/blends.py data/{scifact,cranfield,npl}

Searches each collection's test queries once, through the product (the server and the corpora are
those of benchmarks/stages.py), and ranks the candidates anew by other weights. For each set of
stages it prints nDCG@10 by collection: where the last stage overrules (legs of recall are fused by
reciprocal ranks), by the default blend, and by the weights that are best on the mean of the other
collections (leave one out). Of the pool it prints the share of relevant documents among its first
hundred, by leg and by both kinds of fusion. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from statistics import fmean

import psycopg
from stages import add_collections, served, some_queries

from pgrerank.evaluation.blending import weights_to_try
from pgrerank.evaluation.measures import measure
from pgrerank.evaluation.pools import Pool, Sizes, complete, pool_of
from pgrerank.evaluation.traces import ask
from pgrerank.evaluation.variant import Variant
from pgrerank.judgements import Judgements
from pgrerank.stages import DEFAULT_BLEND, STAGES
from pgrerank.terminal import print_rows, work_progress

COMBINATIONS = {
    ", ".join(STAGES[stage].label for stage in stages): list(stages)
    for stages in (
        ("dense", "lexical"),
        ("dense", "maxsim"),
        ("dense", "cross_encoder"),
        ("dense", "maxsim", "cross_encoder"),
        ("dense", "lexical", "maxsim"),
        ("dense", "lexical", "cross_encoder"),
        ("dense", "lexical", "maxsim", "cross_encoder"),
    )
}
SIZES = Sizes(candidates=100, maxsim_top=30)


def pools_of(connection: psycopg.Connection, name: str, judged: Judgements) -> dict[str, Pool]:
    """Each query's candidates, with the scores that any of the weights needs."""
    variant = Variant(name, timeout="5 min")
    with work_progress(f"searching {name}", "queries") as progress:
        wide = ask(
            connection,
            variant,
            judged.queries,
            on_progress=progress,
            stages=["dense", "lexical", "maxsim"],
        )
    pools = {query: pool_of(trace, trace) for query, trace in wide.items()}
    tried = [{}, DEFAULT_BLEND, *weights_to_try(["dense", "lexical", "maxsim"])]
    heads = {
        query: {
            int(place)
            for weights in tried
            for place in pool.before_head(SIZES, weights)[: SIZES.maxsim_top]
        }
        for query, pool in pools.items()
    }
    with work_progress(f"cross-encoding {name}", "queries") as progress:
        complete(connection, variant, judged.queries, pools, heads, progress)
    return pools


def quality(
    pools: Mapping[str, Pool],
    judged: Judgements,
    stages: list[str],
    weights: Mapping[str, float],
    of: str = "nDCG@10",
) -> float:
    """The measure's mean where these stages run, blended by the weights."""
    unknown = {
        query: Pool(
            pool.keys,
            {
                stage: scores if stage in stages else scores * float("nan")
                for stage, scores in pool.scores.items()
            },
        )
        for query, pool in pools.items()
    }
    run = {query: pool.order(SIZES, weights) for query, pool in unknown.items()}
    return measure(judged.qrels, run, [of])[of]


def compared(
    of_all: Mapping[str, tuple[dict[str, Pool], Judgements]], stages: list[str]
) -> list[dict[str, object]]:
    """A row for each way to order: nDCG@10 by collection, and the mean."""
    by_weights = {
        json.dumps(weights): {
            name: quality(pools, judged, stages, weights)
            for name, (pools, judged) in of_all.items()
        }
        for weights in weights_to_try(stages)
    }
    best = (
        {
            name: max(
                by_weights,
                key=lambda weights: fmean(
                    value for other, value in by_weights[weights].items() if other != name
                ),
            )
            for name in of_all
        }
        if len(of_all) > 1
        else {}
    )
    rows: list[dict[str, object]] = [
        {"order": order, **values, "mean": fmean(values.values())}
        for order, values in {
            "the last overrules": {n: quality(*of_all[n], stages, {}) for n in of_all},
            "default blend": {n: quality(*of_all[n], stages, DEFAULT_BLEND) for n in of_all},
            "leave one out": {n: by_weights[weights][n] for n, weights in best.items()},
        }.items()
        if values
    ]
    return [*rows, {"order": "its weights", **best, "mean": None}] if best else rows


def recalled(of_all: Mapping[str, tuple[dict[str, Pool], Judgements]]) -> list[dict[str, object]]:
    """A row for each way to make the pool: R@100 by collection, and the mean."""
    ways: dict[str, tuple[list[str], Mapping[str, float]]] = {
        "dense": (["dense"], {}),
        "lexical": (["lexical"], {}),
        "both, reciprocal ranks": (["dense", "lexical"], {}),
        "both, default blend": (["dense", "lexical"], DEFAULT_BLEND),
        "both, equal weights": (["dense", "lexical"], {"dense": 1, "lexical": 1}),
    }
    rows: list[dict[str, object]] = []
    for way, (stages, weights) in ways.items():
        values = {name: quality(*of_all[name], stages, weights, "R@100") for name in of_all}
        rows.append({"order": way, **values, "mean": fmean(values.values())})
    return rows


def main() -> None:
    """Search, rank anew, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_collections(parser)
    arguments = parser.parse_args()
    with served(arguments.folders, arguments.data) as (connection, names):
        judged = {name: some_queries(connection, name, arguments.queries) for name in names}
        of_all = {name: (pools_of(connection, name, judged[name]), judged[name]) for name in names}
    found = {title: compared(of_all, stages) for title, stages in COMBINATIONS.items()}
    found["relevant documents among the first hundred"] = recalled(of_all)
    for title, rows in found.items():
        print(f"\n{title}")
        print_rows(list(rows[0]), [list(row.values()) for row in rows], as_json=False)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
