"""A reranker measured on judged queries: the order after every stage, and HNSW itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

from pgrerank import __version__
from pgrerank.catalog import read_passage_counts, read_reranker, read_texts
from pgrerank.errors import EvaluationError
from pgrerank.evaluation.orders import (
    MEASURES,
    Measured,
    measure_orders,
    percentiles,
    returned,
    warnings,
)
from pgrerank.evaluation.passages import FIRST, passages_found
from pgrerank.evaluation.pools import UNGROUPED
from pgrerank.evaluation.reliability import reliability_of_searches
from pgrerank.evaluation.result import (
    EfPoint,
    Evaluation,
    Order,
    PassagesFound,
    QueryFound,
    Shown,
    Tuning,
)
from pgrerank.evaluation.traces import Progress, Trace, ask, ask_one, spread
from pgrerank.evaluation.variant import Variant
from pgrerank.judgements import Judgements, Run, missing_keys
from pgrerank.stages import STAGES

__all__ = [
    "Phase",
    "Searched",
    "evaluate",
    "possible_stages",
    "runs_of",
    "search_all",
    "settings_of",
    "silently",
]

EF_SEARCH = (40, 100, 200, 400)
_EF_QUERIES = 100
_SHOWN = 5
_SNIPPET = 300
_SETTINGS = (
    *("candidates", "maxsim_bit_top", "maxsim_top", "early_exit", "min_relevance", "blend"),
    *("cross_encoder_model", "embedding_model", "late_interaction_model", "listwise_model"),
    *("listwise_top", "instruction", "signals"),
    *("group_by", "per_group", "diversity", "duplicate_threshold"),
    *("token_precision", "token_dims", "token_pool"),
)
"""What an evaluation tells of the reranker's settings: those that its orders depend on."""

Phase = Callable[[str], AbstractContextManager[Progress]]
"""Opens a part of the work by its title; what it yields is told the progress."""
Connection = psycopg.Connection[Any]


@contextlib.contextmanager
def silently(_title: str) -> Any:
    """Stand in for a progress display that shows nothing."""
    yield lambda _done, _total: None


@dataclass(frozen=True)
class Searched:
    """The searches of an evaluation: by its stages alone, and by exact dense recall, if any.

    `chosen` are those of the same reranker with its groups and diversity; empty where it has none.
    """

    variant: Variant
    judgements: Judgements
    settings: dict[str, Any]
    traces: Mapping[str, Trace]
    exact: Mapping[str, Trace]
    chosen: Mapping[str, Trace] = field(default_factory=dict)
    measures: Sequence[str] = field(default=MEASURES)


def search_all(
    connection: Connection,
    variant: Variant,
    judgements: Judgements,
    *,
    measures: Sequence[str] = MEASURES,
    exact: bool = True,
    phase: Phase = silently,
) -> Searched:
    """Ask a reranker every judged query, once models are loaded; by `exact` recall too.

    What its groups and diversity make of the order is asked apart from the stages.

    Raises psycopg.Error where it can't be asked, and EvaluationError where the first search is
    degraded: then the worker would be measured, not the reranker.
    """
    settings = settings_of(connection, variant)
    queries = judgements.queries
    reason = ask_one(connection, variant, next(iter(queries.values()))).reason
    if reason is not None:
        raise EvaluationError(
            f"reranker {variant.reranker} can't be measured while searches are degraded: {reason};"
            " start a worker (pgrerank worker), or give searches more time (NAME:timeout=5 min)"
        )
    exactly: dict[str, Trace] = {}
    if exact and "dense" in possible_stages(settings, variant):
        with phase("exact recall") as progress:
            exactly = ask(
                connection,
                variant,
                queries,
                on_progress=progress,
                stages=["dense"],
                recall="exact",
                **UNGROUPED,
            )
    with phase(f"searching {variant.reranker}") as progress:
        traces = ask(connection, variant, queries, on_progress=progress, **UNGROUPED)
    chosen: dict[str, Trace] = {}
    if any(settings[name] not in (None, value) for name, value in UNGROUPED.items()):
        with phase("with groups and diversity") as progress:
            chosen = ask(connection, variant, queries, on_progress=progress)
    return Searched(variant, judgements, settings, traces, exactly, chosen, tuple(measures))


def possible_stages(settings: Mapping[str, Any], variant: Variant) -> list[str]:
    """The stages that a reranker of these settings can run, or those that the variant names."""
    wants = {
        "dense": settings["embedding_model"],
        "lexical": True,
        "maxsim_bit": settings["late_interaction_model"] and settings["maxsim_bit_top"],
        "maxsim": settings["late_interaction_model"],
        "cross_encoder": settings["cross_encoder_model"],
        "listwise": settings["listwise_model"],
    }
    return [stage for stage in STAGES if wants[stage] and stage in (variant.stages or STAGES)]


def evaluate(
    connection: Connection,
    searched: Searched,
    *,
    qrels: str,
    command: str = "",
    tuning: Tuning | None = None,
    phase: Phase = silently,
) -> Evaluation:
    """Measure the order after each stage, and HNSW against exact recall.

    `qrels` names the judgements, `command` what was run; `tuning` is what was found of the same
    searches, to stand beside. Raises EvaluationError where no search found a document.
    """
    if not any(trace.keys for trace in searched.traces.values()):
        raise EvaluationError(
            f"reranker {searched.variant.reranker} can't be measured: no search found a document"
        )
    degraded = [trace.reason for trace in searched.traces.values() if trace.reason]
    orders, measured = measure_orders(
        searched.judgements.qrels,
        searched.traces,
        searched.exact,
        searched.chosen,
        searched.measures,
    )
    told = warnings(orders, searched.measures[0], len(searched.traces))
    missing = missing_keys(connection, searched.variant.reranker, searched.judgements)
    if missing.missing:
        told.append(
            f"{missing.missing} of {missing.judged} judged documents are not in the source, such as"
            f" {', '.join(missing.examples)}: no search can find them"
        )
    if degraded:
        told.insert(
            0, f"{len(degraded)} of {len(searched.traces)} searches were degraded: {degraded[0]}"
        )
    variant = searched.variant
    return Evaluation(
        pgrerank=__version__,
        reranker=variant.reranker,
        generation=searched.settings["generation"],
        label=variant.label or variant.reranker,
        qrels=qrels,
        settings=searched.settings,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        queries=len(searched.judgements.queries),
        judgements=searched.judgements.count,
        degraded=len(degraded),
        measures=list(searched.measures),
        orders=orders,
        hnsw=_hnsw(connection, searched, phase),
        reliability=reliability_of_searches(searched.traces, searched.judgements.qrels),
        passages=_passages(connection, searched, measured[orders[-1]["name"]]),
        tuning=tuning,
        warnings=told + (tuning["warnings"] if tuning else []),
        per_query=_per_query(connection, searched, orders, measured),
    )


def runs_of(searched: Searched, orders: Sequence[Order]) -> dict[str, Run]:
    """The run of each order, by its name."""
    runs: dict[str, Run] = {}
    for order in orders:
        if order["stage"] == "chosen":
            runs[order["name"]] = returned(searched.chosen)
            continue
        exact = order["stage"] == "exact_recall"
        traces, stage = (searched.exact, "dense") if exact else (searched.traces, order["stage"])
        runs[order["name"]] = {query: trace.order(stage) for query, trace in traces.items()}
    return runs


def settings_of(connection: Connection, variant: Variant) -> dict[str, Any]:
    """The settings of the measured searches: the reranker's own, replaced by the variant's."""
    reranker = read_reranker(connection, variant.reranker, variant.generation)
    own = {name: reranker.settings[name] for name in _SETTINGS}
    given = {name: value for name, value in variant.settings.items() if value is not None}
    return {**own, **given, "generation": reranker.generation}


def _hnsw(connection: Connection, searched: Searched, phase: Phase) -> list[EfPoint]:
    """Measure which share of exact recall HNSW finds by ef_search, on a part of the queries."""
    if not searched.exact:
        return []
    queries = searched.judgements.queries
    some = {query: queries[query] for query in spread(list(queries), _EF_QUERIES)}
    found = []
    with phase("HNSW by ef_search") as progress:
        for number, ef_search in enumerate(EF_SEARCH):
            _set_ef_search(connection, str(ef_search))
            done = number * len(some)
            try:
                traces = ask(
                    connection,
                    searched.variant,
                    some,
                    stages=["dense"],
                    recall="hnsw",
                    on_progress=lambda one, _, done=done: progress(  # type: ignore[misc]
                        done + one, len(EF_SEARCH) * len(some)
                    ),
                    **UNGROUPED,
                )
            finally:
                _set_ef_search(connection, "")
            found.append(_ef_point(ef_search, traces, searched.exact))
    return found


def _set_ef_search(connection: Connection, value: str) -> None:
    connection.execute("SELECT set_config('pgrerank.ef_search', %s, false)", (value,))


def _ef_point(ef_search: int, traces: Mapping[str, Trace], exact: Mapping[str, Trace]) -> EfPoint:
    shares = []
    for query, trace in traces.items():
        wanted = set(exact[query].keys)
        shares.append(len(wanted & set(trace.keys)) / len(wanted) if wanted else 1.0)
    return EfPoint(
        ef_search=ef_search,
        recall=sum(shares) / len(shares),
        ms=percentiles(trace.times["dense"] for trace in traces.values()),
    )


def _passages(
    connection: Connection, searched: Searched, measured: Mapping[str, Mapping[str, float]]
) -> PassagesFound | None:
    traces = searched.chosen or searched.traces
    keys = {key for trace in traces.values() for key in trace.keys[:FIRST]}
    keys |= {key for documents in searched.judgements.qrels.values() for key in documents}
    counts = read_passage_counts(
        connection, searched.variant.reranker, sorted(keys), searched.variant.generation
    )
    return passages_found(searched.judgements, traces, counts, measured)


def _per_query(
    connection: Connection, searched: Searched, orders: Sequence[Order], measured: Measured
) -> list[QueryFound]:
    runs = runs_of(searched, orders)
    heads = {
        (name, query): keys[:_SHOWN] for name, run in runs.items() for query, keys in run.items()
    }
    variant = searched.variant
    shown = {key for head in heads.values() for key in head}
    texts = {
        key: text[:_SNIPPET]
        for key, text in read_texts(
            connection, variant.reranker, sorted(shown), variant.generation
        ).items()
    }
    first = searched.measures[0]
    found = []
    for query, text in searched.judgements.queries.items():
        judged = searched.judgements.qrels[query]
        found.append(
            QueryFound(
                id=query,
                query=text,
                relevant=sum(relevance > 0 for relevance in judged.values()),
                quality={name: measured[name][first][query] for name in runs},
                top={
                    name: [
                        Shown(key=key, relevance=judged.get(key), text=texts.get(key, ""))
                        for key in heads[name, query]
                    ]
                    for name in runs
                },
            )
        )
    return found
