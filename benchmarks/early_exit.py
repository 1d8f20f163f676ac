"""What it costs and saves that the cross-encoder stops reading early, on BEIR collections.

    python benchmarks/early_exit.py data/{scifact,cranfield,npl} [--queries 60]

Searches each test query once, with the whole head read, and computes from these scores what each
`early_exit` would have read and returned, by the code of `pgrerank tune`. Prints a table; the last
line is one JSON object, by collection and value.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from statistics import fmean, median

from stages import add_collections, served, some_queries

from pgrerank.evaluation.depth import EARLY_EXITS, quality_by_size
from pgrerank.evaluation.evaluate import Searched, search_all
from pgrerank.evaluation.pools import Sizes, pool_of
from pgrerank.evaluation.variant import Variant
from pgrerank.terminal import print_rows, work_progress

Found = dict[float, dict[str, float]]
MEASURE = "nDCG@10"


def measured(searched: Searched) -> Found:
    """By `early_exit`: the measure, what it is less than that of reading all, and shares read."""
    settings = searched.settings
    pools = {query: pool_of(trace, trace) for query, trace in searched.traces.items()}
    sizes = Sizes(settings["candidates"], settings["maxsim_top"])
    tried = [replace(sizes, early_exit=value) for value in EARLY_EXITS]
    qualities = quality_by_size(pools, searched.judgements.qrels, tried, settings["blend"], MEASURE)
    found: Found = {}
    for size, quality in zip(tried, qualities, strict=True):
        shares = [pool.share_read(size, settings["blend"]) for pool in pools.values()]
        found[size.early_exit] = {
            "quality": fmean(quality.values()),
            "loss": fmean(qualities[0].values()) - fmean(quality.values()),
            "read_median": median(shares),
            "read_mean": fmean(shares),
        }
    return found


def main() -> None:
    """Search, compute, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_collections(parser)
    arguments = parser.parse_args()
    found: dict[str, Found] = {}
    with served(arguments.folders, arguments.data) as (connection, names):
        for name in names:
            judged = some_queries(connection, name, arguments.queries)
            variant = Variant(name, timeout="5 min")
            found[name] = measured(
                search_all(
                    connection,
                    variant,
                    judged,
                    phase=lambda title: work_progress(title, "queries"),
                )
            )
    rows = [
        [name, f"{value:g}", f"{one['quality']:.4f}", f"{-one['loss']:+.4f}"]
        + [f"{one[f'read_{kind}']:.0%}" for kind in ("median", "mean")]
        for name, by_value in found.items()
        for value, one in by_value.items()
    ]
    print_rows(
        ["collection", "early_exit", MEASURE, "gain", "read, median", "mean"], rows, as_json=False
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
