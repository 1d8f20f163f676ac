"""Whether tuning helps on queries that it has not seen: judged queries by halves.

    python benchmarks/tuning.py data/{scifact,cranfield,npl}

Searches each collection's test queries once (the server and the corpora are those of
benchmarks/stages.py) and splits them 20 times. On one half it chooses a blend as `pgrerank tune`
does, and writes it as `--apply` would: only if it gains by more than chance. On the other half it
measures nDCG@10 by the default blend, by what was written, and by what was found whether it was
written or not. Prints the mean over the splits, the worst split, and in how many a blend was
written. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from statistics import fmean

from blends import SIZES, pools_of
from stages import add_collections, served, some_queries

from pgrerank.evaluation.blending import find_weights
from pgrerank.evaluation.measures import measure
from pgrerank.evaluation.pools import Pool
from pgrerank.evaluation.significance import is_worth_it
from pgrerank.judgements import Judgements, Qrels
from pgrerank.stages import DEFAULT_BLEND
from pgrerank.terminal import print_rows, work_progress

SPLITS = 20


def quality(
    pools: Mapping[str, Pool], qrels: Qrels, queries: list[str], weights: Mapping[str, float]
) -> float:
    """Mean nDCG@10 of these queries by these weights."""
    run = {query: pools[query].order(SIZES, weights) for query in queries}
    return measure({query: qrels[query] for query in queries}, run, ["nDCG@10"])["nDCG@10"]


def by_halves(name: str, pools: Mapping[str, Pool], judged: Judgements) -> dict[str, object]:
    """What tuning on one half gains on the other, over all splits."""
    queries, stages = sorted(judged.queries), list(DEFAULT_BLEND)
    defaults, written, found, count = [], [], [], 0
    with work_progress(f"tuning {name}", "splits") as progress:
        for split in range(SPLITS):
            shuffled = random.Random(split).sample(queries, len(queries))
            first, second = shuffled[: len(queries) // 2], shuffled[len(queries) // 2 :]
            one = find_weights(
                {query: pools[query] for query in first},
                {query: judged.qrels[query] for query in first},
                stages,
                SIZES,
                "nDCG@10",
                DEFAULT_BLEND,
            )
            is_written = is_worth_it(one["quality"] - one["present"], one["p"])
            count += is_written
            defaults.append(quality(pools, judged.qrels, second, DEFAULT_BLEND))
            found.append(quality(pools, judged.qrels, second, one["weights"]))
            written.append(found[-1] if is_written else defaults[-1])
            progress(split + 1, SPLITS)
    return {
        "collection": name,
        "queries": len(queries),
        "default": fmean(defaults),
        "written": fmean(written),
        "worst split": min(a - b for a, b in zip(written, defaults, strict=True)),
        "splits written": count,
        "found, whatever its p": fmean(found),
        "its worst split": min(a - b for a, b in zip(found, defaults, strict=True)),
    }


def main() -> None:
    """Search, split, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_collections(parser)
    arguments = parser.parse_args()
    rows = []
    with served(arguments.folders, arguments.data) as (connection, names):
        for name in names:
            judged = some_queries(connection, name, arguments.queries)
            rows.append(by_halves(name, pools_of(connection, name, judged), judged))
    print_rows(list(rows[0]), [list(row.values()) for row in rows], as_json=False)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
