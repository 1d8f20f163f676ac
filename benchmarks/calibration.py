"""How far relevance can be believed: on queries that it was not fitted to, and on foreign ones.

    python benchmarks/calibration.py data/{scifact,cranfield,npl} [--foreign 200]

Searches each collection's judged queries once, with all stages (the server and the corpora are
those of benchmarks/stages.py), fits relevance to one half of the queries, and measures the first
ten documents of the other half, both ways round: the expected calibration error with all stages and
where the cross-encoder is lost; of a calibration made on the other collections; and of the bare
sigmoid of the cross-encoder's score; and beside it what a relevance that is exactly right would
have by chance, on so many documents. Then the second collection's queries are asked of the first
one, where nothing answers them: for a row of thresholds it prints the share of the first one's own
queries that keep an answer, and of the foreign ones that get none. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from stages import add_collections, served, some_queries

from pgrerank.evaluation.calibration import Calibration, fit
from pgrerank.evaluation.evaluate import Searched, search_all
from pgrerank.evaluation.reliability import RETURNED, reliability
from pgrerank.evaluation.traces import Trace, ask, spread
from pgrerank.evaluation.variant import Variant
from pgrerank.judgements import Judgements
from pgrerank.stages import STAGES
from pgrerank.terminal import print_rows, work_progress

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
BLENDED = [name for name, stage in STAGES.items() if stage.is_blended]
WITHOUT = [name for name in BLENDED if name != "cross_encoder"]


@dataclass(frozen=True)
class Half:
    """The queries of a collection that something was not fitted to, with what was fitted."""

    searched: Searched
    calibrations: Sequence[Calibration]


def searched(connection: psycopg.Connection, name: str, judged: Judgements) -> Searched:
    """The collection's judged queries, asked with all stages."""

    def phase(title: str) -> Any:
        return work_progress(f"{name}: {title}", "queries")

    variant = Variant(name, timeout="5 min", stages=BLENDED)
    return search_all(connection, variant, judged, exact=False, phase=phase)


def foreign(
    connection: psycopg.Connection, name: str, queries: Mapping[str, str]
) -> dict[str, Trace]:
    """Queries of another collection, asked of this one."""
    variant = Variant(name, timeout="5 min", stages=BLENDED)
    with work_progress(f"{name}: foreign queries", "queries") as progress:
        return ask(connection, variant, queries, on_progress=progress)


def part(whole: Searched, queries: Iterable[str]) -> Searched:
    """Those of the queries alone."""
    chosen = list(queries)
    judged = Judgements(
        {query: whole.judgements.queries[query] for query in chosen},
        {query: whole.judgements.qrels[query] for query in chosen},
    )
    traces = {query: whole.traces[query] for query in chosen}
    return Searched(whole.variant, judged, whole.settings, traces, {})


def halves(whole: Searched) -> list[Half]:
    """Each half of the queries, with what was fitted to the other one."""
    queries = list(whole.traces)
    first, second = part(whole, queries[::2]), part(whole, queries[1::2])
    return [Half(first, fit(second)), Half(second, fit(first))]


def relevance(
    trace: Trace, calibrations: Sequence[Calibration], stages: Sequence[str] = BLENDED
) -> np.ndarray:
    """The relevance of a search's documents, by those of the stages that scored each."""
    by_stages = {one.stages: one for one in calibrations}
    told = []
    for place in range(len(trace.keys)):
        known = tuple(s for s in stages if np.isfinite(trace.scores[s][place]))
        one = by_stages[known]
        odds = one.intercept + sum(
            one.slopes[s] * trace.scores[s][place] / trace.units.get(s, 1) for s in known
        )
        told.append(1 / (1 + np.exp(-odds)))
    return np.array(told)


def pairs_of(
    parts: Sequence[Half], stages: Sequence[str] = BLENDED
) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Relevance of the first documents of all parts, and whether each is relevant."""
    pairs = [
        (told, half.searched.judgements.qrels[query].get(key, 0) > 0)
        for half in parts
        for query, trace in half.searched.traces.items()
        for key, told in list(
            zip(trace.keys, relevance(trace, half.calibrations, stages), strict=True)
        )[:RETURNED]
    ]
    told, relevant = zip(*pairs, strict=True)
    return told, relevant


def by_chance(told: Sequence[float]) -> float:
    """The mean calibration error of this relevance, were it exactly right."""
    draws = np.random.default_rng(7)
    right = np.array(told)
    return float(
        np.mean([reliability(right, draws.random(len(right)) < right)["ece"] for _ in range(100)])
    )


def bare(whole: Searched) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """The same of the sigmoid of the cross-encoder's score."""
    pairs = [
        (float(1 / (1 + np.exp(-score))), whole.judgements.qrels[query].get(key, 0) > 0)
        for query, trace in whole.traces.items()
        for key, score in list(zip(trace.keys, trace.scores["cross_encoder"], strict=True))[
            :RETURNED
        ]
        if np.isfinite(score)
    ]
    told, relevant = zip(*pairs, strict=True)
    return told, relevant


def errors(collections: Mapping[str, Searched]) -> list[dict[str, Any]]:
    """A row for each collection: errors of what was fitted where."""
    rows = []
    for name, whole in collections.items():
        own = halves(whole)
        found = {"all stages": pairs_of(own), "no cross-encoder": pairs_of(own, WITHOUT)}
        for other, trained in collections.items():
            if other != name:
                found[f"fitted on {other}"] = pairs_of([Half(whole, fit(trained))])
        found["sigmoid of its score"] = bare(whole)
        rows += [
            {
                "collection": name,
                "relevance by": title,
                "documents": len(told),
                "relevant": float(np.mean(relevant)),
                "ece": measured["ece"],
                "by chance": by_chance(told),
                "brier": measured["brier"],
                "bins": measured["bins"],
            }
            for title, (told, relevant) in found.items()
            for measured in [reliability(told, relevant)]
        ]
    return rows


def curve(
    whole: Searched,
    asked: Mapping[str, Trace],
    stages: Sequence[str] = BLENDED,
) -> list[dict[str, float]]:
    """For each threshold, shares of own queries that keep an answer and foreign ones that get none.

    The last threshold is the highest that keeps 95 % of the own ones.
    """
    own, others = [], []
    for half in halves(whole):
        own += [highest(trace, half, stages) for trace in half.searched.traces.values()]
        others += [highest(trace, half, stages) for trace in asked.values()]
    keeps = float(np.quantile(own, 0.05, method="lower"))
    return [
        {
            "min_relevance": threshold,
            "kept": float(np.mean(np.array(own) >= threshold)),
            "empty": float(np.mean(np.array(others) < threshold)),
        }
        for threshold in (*THRESHOLDS, keeps)
    ]


def highest(trace: Trace, half: Half, stages: Sequence[str]) -> float:
    """The highest relevance of a search's first documents."""
    return float(relevance(trace, half.calibrations, stages)[:RETURNED].max(initial=0.0))


def show(collections: Mapping[str, Searched], asked: Mapping[str, Trace]) -> dict[str, Any]:
    """Print all, and return it."""
    rows = errors(collections)
    columns = [name for name in rows[0] if name != "bins"]
    print_rows(columns, [[row[name] for name in columns] for row in rows], as_json=False)
    result: dict[str, Any] = {"errors": rows}
    if asked:
        first = next(iter(collections.values()))
        for title, stages in (("all stages", BLENDED), ("no cross-encoder", WITHOUT)):
            points = result.setdefault("foreign", {})[title] = curve(first, asked, stages)
            print(f"\nforeign queries, {title}")
            print_rows(list(points[0]), [list(one.values()) for one in points], as_json=False)
    return result


def main() -> None:
    """Search, fit, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_collections(parser)
    parser.add_argument("--foreign", type=int, default=200, help="queries that nothing answers")
    arguments = parser.parse_args()
    with served(arguments.folders, arguments.data) as (connection, names):
        judged = {name: some_queries(connection, name, arguments.queries) for name in names}
        collections = {name: searched(connection, name, judged[name]) for name in names}
        asked: dict[str, Trace] = {}
        if len(names) > 1:
            queries = some_queries(connection, names[1], None).queries
            some = spread(list(queries), arguments.foreign)
            asked = foreign(connection, names[0], {query: queries[query] for query in some})
    print(json.dumps(show(collections, asked)))


if __name__ == "__main__":
    main()
