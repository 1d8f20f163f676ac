"""Forward passes of a model that is on one device, or on several."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from pgrerank.models import device
from pgrerank.models.graphs import Features, Graphs
from pgrerank.models.inputs import Inputs
from pgrerank.models.steps import Input


class Passes:
    """Runs batches on copies of a model, each on the one that is least busy."""

    def __init__(self, inputs: Inputs, models: Sequence[Any], **arguments: Any) -> None:
        self.graphs = [Graphs(inputs, partial(one, **arguments), one.device) for one in models]
        self._busy = [0] * len(models)
        self._lock = threading.Lock()

    @contextmanager
    def run(self, inputs: Sequence[Input]) -> Iterator[tuple[Features, Features]]:
        """What is read of a batch, on the CPU, and what a model makes of it, on its device.

        Both may have rows beyond those of the inputs. What is on the device is to be used inside.
        """
        with self._lock:
            place = min(range(len(self._busy)), key=self._busy.__getitem__)
            self._busy[place] += 1
        try:
            with device.inference(self.graphs[place].device):
                yield self.graphs[place].run(inputs)
        finally:
            with self._lock:
                self._busy[place] -= 1
