"""Calibrates relevance: the probability that a document is relevant, by the scores of its stages.

A logistic regression on raw scores (Platt 1999), for each set of stages that may score a document;
sql/93_relevance.sql applies it. Slopes are never below 0, so that a higher score never means less.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from pgrerank.errors import EvaluationError, extra
from pgrerank.evaluation.evaluate import (
    Phase,
    Searched,
    possible_stages,
    search_all,
    settings_of,
    silently,
)
from pgrerank.evaluation.pools import Pool, Sizes, blended, pool_of
from pgrerank.evaluation.reliability import RETURNED, reliability
from pgrerank.evaluation.traces import Trace
from pgrerank.evaluation.variant import Variant
from pgrerank.judgements import Judgements
from pgrerank.stages import LEGS, STAGES

__all__ = ["Calibration", "calibrate", "fit", "save"]

FOLDS = 5
LEAST_QUERIES = 10
LEAST_RELEVANT = 5
"""Relevant documents below which nothing is fitted to a set of stages."""
KEPT = 0.95
"""Share of the queries with a relevant document that keep one at the relevance told."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What makes a relevance of the scores of some stages, and how well: cross-validated.

    `slopes` are by stage. `documents` of `queries` were fitted on, ten of each, and `relevant` of
    them are relevant. `ece` is the expected calibration error, `brier` the mean squared error. With
    a `min_relevance` of `keeps`, 95 % of the queries that have a relevant document still have an
    answer.
    """

    stages: tuple[str, ...]
    intercept: float
    slopes: Mapping[str, float]
    queries: int
    documents: int
    relevant: int
    ece: float
    brier: float
    keeps: float


@dataclass(frozen=True)
class _Rows:
    """Documents of all queries: their scores by stage, in columns, and whether each is relevant."""

    scores: Numbers
    relevant: Numbers
    query: NDArray[np.int64]


def calibrate(
    connection: psycopg.Connection[Any],
    variant: Variant,
    judgements: Judgements,
    *,
    phase: Phase = silently,
) -> list[Calibration]:
    """Ask a reranker all judged queries, and fit a calibration to each set of its stages.

    Raises psycopg.Error where it can't be asked, EvaluationError where searches are degraded or
    there are too few judgements.
    """
    if len(judgements.queries) < LEAST_QUERIES:
        raise EvaluationError(
            f"{len(judgements.queries)} judged queries are too few to calibrate by, expected"
            f" {LEAST_QUERIES} or more"
        )
    settings = settings_of(connection, variant)
    stages = [
        stage
        for stage in possible_stages(settings, variant)
        if STAGES[stage].is_blended or stage == "maxsim_bit"
    ]
    whole = replace(variant, stages=stages)
    return fit(search_all(connection, whole, judgements, exact=False, phase=phase))


def fit(searched: Searched) -> list[Calibration]:
    """Fit a calibration to each set of the stages that ran, the largest sets first.

    Sets of which too few documents are relevant are left out; EvaluationError where that is all.
    """
    stages = [name for name, stage in STAGES.items() if stage.is_blended]
    ran = [s for s in stages if any(s in trace.stages for trace in searched.traces.values())]
    calibrations = [
        _fitted(chosen, rows)
        for size in range(len(ran), 0, -1)
        for chosen in itertools.combinations(ran, size)
        for rows in [_rows(searched, chosen)]
        if rows.relevant.sum() >= LEAST_RELEVANT
    ]
    if not calibrations:
        raise EvaluationError(
            f"fewer than {LEAST_RELEVANT} relevant documents are among those found: judge more"
        )
    return calibrations


def save(
    connection: psycopg.Connection[Any],
    variant: Variant,
    qrels: str,
    calibrations: Sequence[Calibration],
) -> None:
    """Write the calibrations of a reranker's generation, in place of those before."""
    settings = settings_of(connection, variant)
    own = (variant.reranker, settings["generation"])
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM pgrerank.calibrations WHERE (reranker, generation) = (%s, %s)", own
        )
        cursor.executemany(
            "INSERT INTO pgrerank.calibrations (reranker, generation, stages, cross_encoder_model,"
            " instruction, intercept, slopes, qrels_set, queries, documents, relevant, ece, brier)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    *(*own, list(one.stages)),
                    settings["cross_encoder_model"] if "cross_encoder" in one.stages else None,
                    *(settings["instruction"], one.intercept, Jsonb(dict(one.slopes)), qrels),
                    *(one.queries, one.documents, one.relevant, one.ece, one.brier),
                )
                for one in calibrations
            ],
        )


def _rows(searched: Searched, stages: Sequence[str]) -> _Rows:
    """The best documents of each query, had only these stages scored them."""
    qrels = searched.judgements.qrels
    parts = [
        _of_query(trace, _best(trace, searched.settings, stages), stages, qrels[query], number)
        for number, (query, trace) in enumerate(searched.traces.items())
    ]
    return _Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _of_query(
    trace: Trace, keys: Sequence[str], stages: Sequence[str], judged: Mapping[str, int], number: int
) -> tuple[Numbers, Numbers, NDArray[np.int64]]:
    places = {key: place for place, key in enumerate(trace.keys)}
    chosen = np.array([places[key] for key in keys], np.int64)
    scores = np.stack([trace.scores[s][chosen] / trace.units.get(s, 1.0) for s in stages], axis=1)
    relevant = np.array([judged.get(key, 0) > 0 for key in keys], np.float64)
    known = np.isfinite(scores).all(axis=1)
    return scores[known], relevant[known], np.full(known.sum(), number)


def _best(trace: Trace, settings: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """What a search by these stages returns; without a leg, of the documents that they scored.

    Further down judgements are sparser, and the same scores are of documents less relevant.
    """
    pool, blend = pool_of(trace, trace), settings["blend"]
    if set(stages) & set(LEGS):
        nothing = np.full(len(pool.keys), np.nan)
        ran = {*stages, "maxsim_bit"} if "maxsim" in stages else set(stages)
        known = {stage: s if stage in ran else nothing for stage, s in pool.scores.items()}
        sizes = Sizes(settings["candidates"], settings["maxsim_top"], settings["maxsim_bit_top"])
        return Pool(pool.keys, known).order(sizes, blend)[:RETURNED]
    scored = np.flatnonzero(np.isfinite([pool.scores[stage] for stage in stages]).all(axis=0))
    weights = blend or {stages[-1]: 1.0}
    totals = blended({stage: pool.scores[stage][scored] for stage in stages}, weights)
    return [pool.keys[place] for place in scored[np.argsort(-totals, kind="stable")][:RETURNED]]


def _fitted(stages: Sequence[str], rows: _Rows) -> Calibration:
    """Fit to all rows, and measure by what was fitted without each fold of the queries."""
    unseen = np.zeros(len(rows.relevant))
    for fold in range(FOLDS):
        out = rows.query % FOLDS == fold
        intercept, slopes = _regress(rows.scores[~out], rows.relevant[~out])
        unseen[out] = _sigmoid(intercept + rows.scores[out] @ slopes)
    measured = reliability(unseen, rows.relevant)
    intercept, slopes = _regress(rows.scores, rows.relevant)
    return Calibration(
        stages=tuple(stages),
        intercept=intercept,
        slopes=dict(zip(stages, slopes.tolist(), strict=True)),
        queries=len(np.unique(rows.query)),
        documents=len(rows.relevant),
        relevant=int(rows.relevant.sum()),
        ece=measured["ece"],
        brier=measured["brier"],
        keeps=_keeps(rows, unseen),
    )


def _keeps(rows: _Rows, relevance: Numbers) -> float:
    best = [
        relevance[rows.query == query].max() for query in np.unique(rows.query[rows.relevant > 0])
    ]
    return float(np.quantile(best, 1 - KEPT, method="lower"))


def _sigmoid(odds: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-np.clip(odds, -80, 80)))


def _regress(scores: Numbers, relevant: Numbers) -> tuple[float, Numbers]:
    """Intercept and slopes of a logistic regression, with half a squared slope as penalty.

    That is on scores of deviation 1, and keeps slopes finite where scores tell all.
    """
    with extra("evaluation", "calibrating"):
        from scipy.optimize import minimize
    mean, deviation = scores.mean(axis=0), scores.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    design = np.column_stack([np.ones(len(scores)), (scores - mean) / deviation])

    def loss(weights: Numbers) -> tuple[float, Numbers]:
        odds = design @ weights
        slopes = np.concatenate([[0.0], weights[1:]])
        value = np.logaddexp(0, odds).sum() - relevant @ odds + slopes @ slopes / 2
        return float(value), design.T @ (_sigmoid(odds) - relevant) + slopes

    bounds = [(None, None), *[(0.0, None)] * scores.shape[1]]
    found = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    slopes = found.x[1:] / deviation
    return float(found.x[0] - mean @ slopes), slopes
