"""A worker's metrics, as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pgrerank import __version__
from pgrerank.models.store import Weights
from pgrerank.worker.cache import Cache
from pgrerank.worker.observing.observer import call_of, outcome
from pgrerank.worker.observing.statistics import Said
from pgrerank.worker.requests import Envelope

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
STALE = 60.0
"""Seconds after which what the database said is not shown any more."""


disable_created_metrics()  # type: ignore[no-untyped-call]


class Live(NamedTuple):
    """What is read of the worker itself whenever metrics are asked for."""

    waiting: Callable[[], dict[str, int]]
    sessions: Callable[[], int]
    caches: dict[str, Cache]
    weights: Callable[[], list[Weights]]
    said: Callable[[], Said | None]


class Metrics:
    """Counts requests and batches; `text` is what Prometheus reads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        info = Gauge("pgrerank_worker_info", "The worker.", ["version"], registry=self._registry)
        info.labels(__version__).set(1)
        self._requests = Counter(
            "pgrerank_requests",
            "Requests of Postgres by call, and how they ended.",
            ["call", "outcome"],
            registry=self._registry,
        )
        self._seconds = self._histogram("request_seconds", "How long they took.", "call", _SECONDS)
        self._items = self._histogram("batch_items", "Items of a batch.", "lane", _ITEMS)
        self._batch_tokens = self._histogram("batch_tokens", "Its tokens.", "lane", _TOKENS)
        self._running = self._histogram("batch_seconds", "How long it ran.", "lane", _SECONDS)

    def _histogram(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"pgrerank_{name}", text, [label], buckets=buckets, registry=self._registry
        )

    @contextmanager
    def request(self, envelope: Envelope) -> Iterator[None]:
        """Count a request."""
        call, begun = call_of(envelope), time.monotonic()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._requests.labels(call, outcome(error)).inc()
            self._seconds.labels(call).observe(time.monotonic() - begun)

    def batch(self, lane: str, items: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self._items.labels(lane).observe(items)
        self._batch_tokens.labels(lane).observe(tokens)
        self._running.labels(lane).observe(seconds)

    def watch(self, live: Live) -> None:
        """Show this too."""
        self._registry.register(_Worker(live))
        self._registry.register(_Database(live.said))

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"pgrerank_{name}", text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pgrerank_{name}", text, labels=labels)


class _Worker(Collector):
    """What the worker has now."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterable[Metric]:
        live = self._live
        waiting = _gauge("waiting_requests", "Requests that are not done, by lane.", "lane")
        for lane, count in live.waiting().items():
            waiting.add_metric([lane], count)
        sessions = _gauge("sessions", "Sessions of Postgres connected.")
        sessions.add_metric([], live.sessions())
        hits = _counter("cache_hits", "Results found in the cache.", "call")
        misses = _counter("cache_misses", "Results that were computed.", "call")
        saved = _counter("cache_saved_seconds", "Seconds that the cache has saved.", "call")
        for call, cache in live.caches.items():
            hits.add_metric([call], cache.hits)
            misses.add_metric([call], cache.computed)
            saved.add_metric([call], cache.saved)
        labels = ("model", "device", "precision")
        weights = _gauge("model_bytes", "Memory that a model's weights take.", *labels)
        for one in live.weights():
            weights.add_metric([one.model, one.device, one.precision], one.bytes)
        return [waiting, sessions, hits, misses, saved, weights]


class _Database(Collector):
    """What the database said last. All workers of a database say the same."""

    def __init__(self, said: Callable[[], Said | None]) -> None:
        self._said = said

    def collect(self) -> Iterable[Metric]:
        said = self._said()
        is_fresh = said is not None and time.monotonic() - said.at < STALE
        up = _gauge("database_up", "Whether the database could be asked a moment ago.")
        up.add_metric([], is_fresh)
        yield up
        if said is not None and is_fresh:
            yield from _queues(said)
            yield from _searches(said)
            yield from _checks(said)


def _queues(said: Said) -> Iterator[Metric]:
    families = (
        _gauge("pending_documents", "Documents that wait to be encoded.", "reranker"),
        _gauge("failed_documents", "Documents that could not be encoded.", "reranker"),
        _gauge("oldest_pending_seconds", "How long the oldest has waited.", "reranker"),
        _gauge("set_aside", "Whether the reranker is set aside for a while.", "reranker"),
    )
    for reranker, *values in said.queues:
        for family, value in zip(families, values, strict=True):
            family.add_metric([reranker], float(value))
    yield from families


def _searches(said: Said) -> Iterator[Metric]:
    seconds = HistogramMetricFamily(
        "pgrerank_stage_seconds",
        "How long stages of searches took, as pgrerank.stats has it.",
        labels=["reranker", "stage"],
    )
    documents = _counter("stage_documents", "Documents that stages scored.", "reranker", "stage")
    degraded = _counter("degraded_searches", "Searches degraded.", "reranker", "reason")
    for reranker, stage, milliseconds, count, histogram, reasons in said.stats:
        total, buckets = 0, []
        for bound, calls in zip(said.bounds, histogram, strict=True):
            total += calls
            buckets.append(("+Inf" if bound == float("inf") else str(bound / 1000), float(total)))
        seconds.add_metric([reranker, stage], buckets, float(milliseconds) / 1000)
        documents.add_metric([reranker, stage], count)
        for reason, calls in (reasons or {}).items():
            degraded.add_metric([reranker, reason], calls)
    yield from (seconds, documents, degraded)


def _checks(said: Said) -> Iterator[Metric]:
    labels = ("reranker", "measure", "stage")
    value = _gauge("check_value", "What continuous checks found.", *labels)
    bad = _gauge("check_bad", "Whether that is bad.", *labels)
    for reranker, measure, stage, found, is_bad in said.checks:
        value.add_metric([reranker, measure, stage or ""], found)
        bad.add_metric([reranker, measure, stage or ""], is_bad)
    yield from (value, bad)
