"""Measures of runs against qrels; ir-measures computes them."""

from __future__ import annotations

from collections.abc import Sequence

from pgrerank.errors import SettingsError, extra
from pgrerank.judgements import Qrels, Run


def measure(qrels: Qrels, run: Run, measures: Sequence[str]) -> dict[str, float]:
    """Means over all queries in the qrels, by the measures' names (`nDCG@10`, `RR@10`, `R@100`).

    A query without an answer counts as zero. Raises SettingsError for an unknown measure or where
    ir-measures is not installed.
    """
    by_query = measure_queries(qrels, run, measures)
    return {
        name: sum(values.values()) / len(values) if values else 0.0
        for name, values in by_query.items()
    }


def measure_queries(qrels: Qrels, run: Run, measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each measure's value for every query in the qrels; raises as :func:`measure` does."""
    with extra("evaluation", "measuring"):
        import ir_measures
    try:
        names = {ir_measures.parse_measure(name): name for name in measures}
    except (NameError, ValueError, SyntaxError) as error:
        raise SettingsError(f"measures {', '.join(measures)}: {error}") from error
    scored = {
        query: {key: -float(place) for place, key in enumerate(keys)} for query, keys in run.items()
    }
    judged = {query: dict(relevance) for query, relevance in qrels.items()}
    values: dict[str, dict[str, float]] = {
        name: dict.fromkeys(judged, 0.0) for name in names.values()
    }
    for metric in ir_measures.iter_calc(list(names), judged, scored):
        values[names[metric.measure]][metric.query_id] = float(metric.value)
    return values
