"""The device that a model runs on: threads, streams, and moving arrays there and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

T = TypeVar("T")

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1856, 2**15
"""Tokens of a batch. Measured on two cores with AMX, a hundred pairs of 113 tokens take 757 ms in
batches of 9, 636 in those of 16, 664 of 18, 703 of 27; more than this gain nothing on a GPU (an
H200, with models of 384 and of 768 dimensions)."""
AT_ONCE = 2
"""Runs under way on a GPU: one computes while the other is moved there or back."""

_THREADS = torch.get_num_threads()
_own = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute what is inside by the calling thread alone.

    As soon as a second thread has had OpenMP's helpers, there are more of them than processors, and
    those of the thread that runs the models no longer wait awake for the next piece of work: a
    query takes twice as long from then on (measured on two cores with GNU's OpenMP).
    """
    was_alone, _own.is_alone = _is_alone(), True
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _own.is_alone = was_alone
        torch.set_num_threads(1 if was_alone else _THREADS)


def _is_alone() -> bool:
    return getattr(_own, "is_alone", False)


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Run what is inside without gradients, on a GPU in a stream of the calling thread.

    In one stream for all, one thread's copy would wait for another's forward pass.
    """
    with torch.inference_mode():
        if device.type != "cuda":
            # A thread that began while another was to compute alone has taken its number over.
            if torch.get_num_threads() != _THREADS and not _is_alone():
                torch.set_num_threads(_THREADS)
            yield
            return
        # cuDNN plans each shape of a batch anew in each thread, which takes longer than the batch.
        torch.backends.cuda.enable_cudnn_sdp(False)
        with torch.cuda.stream(_stream(device)):
            yield


def _stream(device: torch.device) -> torch.cuda.Stream:
    streams: dict[str, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    if str(device) not in streams:
        streams[str(device)] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[str(device)]


def to_device(arrays: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch's tensors to a device, without waiting; what is no tensor stays as it is."""
    is_gpu = device.type == "cuda"
    return {
        name: (value.pin_memory() if is_gpu else value).to(device, non_blocking=is_gpu)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arrays.items()
    }


def to_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Move a tensor of floats here in one piece, and wait for it."""
    values = tensor.float()
    if values.device.type != "cuda":
        return np.asarray(values.cpu().numpy(), np.float32)
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    here.copy_(values, non_blocking=True)
    torch.cuda.current_stream(values.device).synchronize()
    return np.asarray(here.numpy(), np.float32)


def halving(run: Callable[[Sequence[T]], list[Any]], inputs: Sequence[T]) -> list[Any]:
    """Run a batch; where the device's memory is too small for it, one half after the other."""
    try:
        return run(inputs)
    except torch.OutOfMemoryError:
        if len(inputs) == 1:
            raise
    middle = len(inputs) // 2
    return halving(run, inputs[:middle]) + halving(run, inputs[middle:])
