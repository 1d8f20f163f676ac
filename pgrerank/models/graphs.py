"""CUDA graphs: recordings of a forward pass, which are launched as one.

A query in a BERT-base takes 9 ms to launch kernel by kernel, and 0.7 ms as a graph (H200). A large
batch takes as long to launch as to run, and whoever launches it holds up all other Python.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pgrerank.models import device
from pgrerank.models.inputs import Inputs
from pgrerank.models.steps import Input

log = logging.getLogger(__name__)

Features = dict[str, Any]

LARGEST = device.GPU_BATCH_TOKENS * 5 // 4
"""Tokens of a batch that is recorded: of any but a window's that is longer alone."""
SEEN, KEPT = 3, 128
"""How often a shape is met before it is recorded, and how many recordings there are at most."""
ROWS = 32
"""A batch of more than twice as many rows is filled up to a multiple of this."""
CLOSE = 0.02
"""By how much a recording's numbers may differ from the pass it was made of, as a share of the
largest: kernels may be others, and bfloat16 has steps of 1/256."""


class Graphs:
    """Runs a model's forward pass on batches of its inputs.

    Shapes are few, as batches are filled up: small ones to a power of two, large ones to a multiple
    of ROWS. All recordings use one piece of memory, one after the other. A model that can't be
    recorded, or whose recording says something else, is run as ever.
    """

    def __init__(
        self, inputs: Inputs, forward: Callable[[Features], Any], on: torch.device
    ) -> None:
        self._inputs = inputs
        self._forward = forward
        self.device = on
        self._are_possible = on.type == "cuda" and inputs.are_ids
        self._seen: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording] = {}
        self._memory = torch.cuda.graph_pool_handle() if self._are_possible else None
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Input]) -> tuple[Features, Features]:
        """What is read of a batch, and what the model makes of it; see :class:`Passes`.

        To be called in :func:`pgrerank.models.device.inference`.
        """
        read = self._inputs.collate(self._filled(inputs))
        if not self._are_possible or read["input_ids"].numel() > LARGEST:
            return read, self._eager(read)
        shape = tuple(read["input_ids"].shape)
        with self._lock:
            if shape in self._recordings:
                return read, self._recordings[shape].replay(read)
        made = self._eager(read)
        with self._lock:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] == SEEN and len(self._recordings) < KEPT:
                self._record(shape, read, made)
        return read, made

    def _filled(self, inputs: Sequence[Input]) -> Sequence[Input]:
        if not self._are_possible or sum(one.tokens for one in inputs) > LARGEST:
            return inputs
        rows = len(inputs)
        filled = 2 ** (rows - 1).bit_length() if rows <= 2 * ROWS else -(-rows // ROWS) * ROWS
        return [*inputs, *[inputs[0]] * (filled - rows)]

    def _eager(self, read: Features) -> Features:
        return dict(self._forward(device.to_device(read, self.device)))

    def _record(self, shape: Any, read: Features, made: Features) -> None:
        try:
            on_device = device.to_device(read, self.device)
            recording = _Recording(self._forward, on_device, self._memory)
            again = recording.replay(read)
            is_same = all(_are_close(again[name], made[name]) for name in again)
        except Exception as error:  # a graph's errors have no common base
            log.info("a model can't be recorded as a CUDA graph: %s", error)
            is_same = False
        if is_same:
            self._recordings[shape] = recording
        else:
            self._are_possible = False
            self._recordings.clear()


class _Recording:
    """A forward pass over fixed places of memory; whoever uses it holds a lock."""

    def __init__(self, forward: Callable[[Features], Any], read: Features, memory: Any) -> None:
        self._read = read
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        stream.synchronize()
        # Other threads go on to allocate memory meanwhile.
        with torch.cuda.graph(
            self._graph, pool=memory, stream=stream, capture_error_mode="thread_local"
        ):
            self._made = dict(forward(dict(read)))

    def replay(self, read: Features) -> Features:
        """What the model makes of a batch of this shape."""
        for name, values in read.items():
            if isinstance(values, torch.Tensor):
                self._read[name].copy_(values.pin_memory(), non_blocking=True)
        self._graph.replay()
        made = {
            name: values.clone() if isinstance(values, torch.Tensor) else values
            for name, values in self._made.items()
        }
        torch.cuda.current_stream().synchronize()
        return made


def _are_close(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not one.is_floating_point():
        return True
    largest = other.abs().max().item()
    return bool(torch.allclose(one, other, rtol=0, atol=CLOSE * largest))
