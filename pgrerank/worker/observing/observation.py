"""All that looks at one worker, as its settings say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from pgrerank.errors import extra
from pgrerank.worker.engine import LANES, Engine
from pgrerank.worker.models import Models
from pgrerank.worker.observing.checks import Checks
from pgrerank.worker.observing.observer import Observer, Observers
from pgrerank.worker.observing.serving import serving_metrics
from pgrerank.worker.observing.statistics import Statistics
from pgrerank.worker.scoring import Scorer
from pgrerank.worker.settings import WorkerSettings

log = logging.getLogger(__name__)

FAREWELL = 3.0
"""Seconds that handing over the last traces may take."""
_SEARCHES = LANES[:-1]


class Observation:
    """Metrics, traces, statistics and checks; raises MissingExtraError for what isn't installed."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._statistics = Statistics(settings.dsn, wanted=settings.metrics is not None)
        observers: list[Observer] = []
        if settings.metrics is not None:
            with extra("observe", "--metrics"):
                from pgrerank.worker.observing.metrics import Metrics
            self._metrics = Metrics()
            observers.append(self._metrics)
        if settings.traces is not None:
            with extra("observe", "--traces"):
                from pgrerank.worker.observing.traces import traces_to
            self._traces = traces_to(settings.traces)
            observers.append(self._traces)
        self.observers = Observers(*observers)

    @contextlib.asynccontextmanager
    async def running(
        self, models: Models, engine: Engine, scorer: Scorer, sessions: Callable[[], int]
    ) -> AsyncIterator[None]:
        """Look on meanwhile. Raises OSError when the address for metrics can't be had."""
        tasks = [asyncio.create_task(self._statistics.run())]
        if self._settings.checks:
            checks = Checks(
                self._settings.dsn,
                lambda: scorer.asked + sum(engine.lanes[name].done for name in _SEARCHES),
                lambda: any(engine.waiting(name) for name in _SEARCHES),
            )
            tasks.append(asyncio.create_task(checks.run()))
        try:
            with self._serving(models, engine, scorer, sessions):
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def _serving(
        self, models: Models, engine: Engine, scorer: Scorer, sessions: Callable[[], int]
    ) -> Iterator[None]:
        if self._settings.metrics is None:
            yield
            return
        from pgrerank.worker.observing.metrics import Live

        self._metrics.watch(
            Live(
                waiting=lambda: {name: engine.waiting(name) for name in LANES},
                sessions=sessions,
                caches=scorer.caches,
                weights=lambda: models.weights,
                said=lambda: self._statistics.said,
            )
        )
        host, port = self._settings.metrics
        with serving_metrics(self._metrics.text, host, port) as port:
            shown = f"[{host}]" if ":" in host else host
            log.info("metrics at http://%s:%d/metrics", shown, port)
            yield

    async def close(self) -> None:
        """Hand over the last traces, if the collector takes them soon."""
        if self._settings.traces is not None:
            closing = threading.Thread(target=self._traces.close, daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, FAREWELL)
