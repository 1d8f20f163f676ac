"""A model's work in steps, so that many callers' items can share its batches.

Some steps need the processor alone, and one needs the device: whoever runs many items prepares
some while the device is at others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
T = TypeVar("T")


class Input(NamedTuple):
    """What a model reads at once: a window of a text, or of a pair of texts.

    ``tokens`` counts all that it reads, special ones included. ``ids`` and ``types`` are its tokens
    and their segments, of shape [tokens]; None where the model makes them itself.
    """

    source: Any
    tokens: int
    ids: Ids | None = None
    types: Ids | None = None


class Prepared(NamedTuple):
    """An item as a model reads it: its inputs, and what is needed to join their outputs."""

    inputs: Sequence[Input]
    shape: Any = None


class Steps(Protocol):
    """One kind of work. Its methods may be called by several threads.

    ``batch_tokens``: of all that one run should read, padding included. ``at_once``: how many runs
    are worth having under way: on a CPU one, on a GPU more, as one computes while others are moved.
    """

    batch_tokens: int
    at_once: int

    def prepare(self, items: Sequence[Any]) -> list[Prepared]:
        """Tokenise items, and cut those that are longer than a window."""
        ...

    def run(self, inputs: Sequence[Input]) -> Sequence[Any]:
        """Run the model on a batch: an output for each input."""
        ...

    def join(self, items: Sequence[Prepared], outputs: Sequence[Sequence[Any]]) -> list[Any]:
        """Make the items' results, each of the outputs of its inputs."""
        ...


@runtime_checkable
class Remote(Protocol):
    """One kind of work that is done elsewhere: it takes time here, but no device."""

    async def ask(self, items: Sequence[Any], timeout: float) -> list[Any]:
        """The items' results, in their order; ``timeout`` is in seconds, and may be infinite.

        Raises RequestError where there is no answer in time, or none can be had.
        """
        ...


@dataclass(eq=False)
class Whole:
    """Work on items as they are: ``call`` maps them to results, and ``size`` is what one costs."""

    call: Callable[[list[Any]], Sequence[Any]]
    size: Callable[[Any], int] = len
    batch_tokens: int = 2**62
    at_once: int = 1

    def prepare(self, items: Sequence[Any]) -> list[Prepared]:
        """Take an item for an input."""
        return [Prepared([Input(item, self.size(item))]) for item in items]

    def run(self, inputs: Sequence[Input]) -> Sequence[Any]:
        """Map items to results."""
        return self.call([one.source for one in inputs])

    def join(self, _items: Sequence[Prepared], outputs: Sequence[Sequence[Any]]) -> list[Any]:
        """Take an output for a result."""
        return [output for [output] in outputs]


def run_all(steps: Steps, items: Sequence[Any]) -> list[Any]:
    """Take all steps in turn, for a caller who is alone."""
    prepared = steps.prepare(items)
    inputs = [
        (item, place) for item, one in enumerate(prepared) for place in range(len(one.inputs))
    ]
    outputs: list[list[Any]] = [[None] * len(one.inputs) for one in prepared]
    for batch in batches(
        inputs, lambda at: prepared[at[0]].inputs[at[1]].tokens, steps.batch_tokens
    ):
        done = steps.run([prepared[item].inputs[place] for item, place in batch])
        for (item, place), output in zip(batch, done, strict=True):
            outputs[item][place] = output
    return steps.join(prepared, outputs)


def batches(
    inputs: Sequence[T], tokens: Callable[[T], int], batch_tokens: int
) -> Iterator[list[T]]:
    """Give the inputs in batches of similar length, the longest first, which pads least.

    A batch has at most ``batch_tokens``, of its longest times its count; one input at least.
    """
    batch: list[T] = []
    width = 0
    for one in sorted(inputs, key=tokens, reverse=True):
        if batch and width * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        if not batch:
            width = tokens(one)
        batch.append(one)
    if batch:
        yield batch
