"""The precision that a model's weights are kept in: what its device multiplies fastest."""

from __future__ import annotations

import functools
import time

import torch
from torch.nn.functional import gelu, linear

from pgrerank.models.device import one_thread
from pgrerank.models.options import Options
from pgrerank.models.spec import Precision

LEAST_GAIN = 1.25
"""How many times as fast bfloat16 must be on a CPU to be chosen: scores change a little by it."""
_WIDTH, _RUNS = 384, 4
_SHAPES = ((256, _WIDTH), (4 * _WIDTH, _WIDTH), (_WIDTH, 4 * _WIDTH))


def choose(device: str, options: Options) -> Precision:
    """The one that the options name, or that the device multiplies fastest."""
    wanted = options.dtype()
    if wanted != "auto":
        return Precision(wanted, "its options say so")
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", "this GPU multiplies bfloat16")
        return Precision("float16", "this GPU does not multiply bfloat16")
    if device == "cpu":
        name = "bfloat16" if has_fast_bfloat16() else "float32"
        return Precision(name, f"bfloat16 is {bfloat16_gain():.1f} times as fast here")
    return Precision("as saved", f"no precision is known to be faster on {device}")


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than those in float32."""
    return bfloat16_gain() >= LEAST_GAIN


@functools.cache
def bfloat16_gain() -> float:
    """How many times as fast as in float32 this CPU multiplies in bfloat16; measured once.

    By the two products that are most of a small model's layer, and by the processor's time of one
    thread, of which others take nothing: 2.1 times with AVX-512 for bfloat16, .4 with AVX-512
    alone, .3 with AVX2 (an AMD EPYC, its instructions withheld). It takes .05 to .2 s, less than
    reading a model, so that nothing of it is kept for the next start.
    """
    took = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with one_thread(), torch.inference_mode():
        for dtype in [*took] * _RUNS:
            tokens, wide, narrow = (torch.full(shape, 1 / _WIDTH, dtype=dtype) for shape in _SHAPES)
            begun = time.thread_time()
            linear(gelu(linear(tokens, wide)), narrow)
            took[dtype] = min(took[dtype], time.thread_time() - begun)
    return took[torch.float32] / took[torch.bfloat16]
