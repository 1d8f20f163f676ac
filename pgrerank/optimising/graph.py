"""Writes a cross-encoder as an int8 ONNX graph, and beside it what the loader `onnx` reads.

PyTorch's own exporter makes the graph and onnxruntime's own quantiser shrinks it, as a worker has
onnxruntime already: only the machine that optimises needs more packages, and the folder serves on
any CPU that onnxruntime has kernels for, ARM's among them.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxscript  # noqa: F401  # what torch.onnx.export would say is missing much later
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]
from sentence_transformers import CrossEncoder
from torch import nn

from pgrerank.errors import ModelError
from pgrerank.models import ModelSpec, loading
from pgrerank.models.onnx import COLUMNS, GRAPH
from pgrerank.models.options import Options

_EXAMPLE = [("what is a probe", "It is a text."), ("probe", "Another one, which is longer.")]
_MOST_IN_ONE_FILE = 1_500_000_000
"""Bytes of weights above which they stand in a file of their own: protobuf ends at 2 GiB."""


def check_kind(spec: ModelSpec) -> None:
    """Raises ModelError for what is registered as anything but a cross-encoder of its loader."""
    if spec.kind != "cross_encoder":
        raise ModelError(
            f"model {spec.name} is of kind {spec.kind}, expected cross_encoder: other kinds can't"
            " be optimised"
        )
    if spec.loader == "onnx":
        raise ModelError(
            f"model {spec.name} is an ONNX graph already, expected a checkpoint that loader"
            " cross_encoder reads: optimise the model that the graph was made of"
        )


def load_network(spec: ModelSpec) -> CrossEncoder:
    """Load the checkpoint of a cross-encoder in float32 on the CPU.

    Raises ModelError for one that an ONNX graph and a tokenizer can't stand for: only plain
    sequence classifiers of one logit can be optimised.
    """
    on_cpu = replace(spec, options={"device": "cpu", "dtype": "float32"})
    model: CrossEncoder = loading.load(
        CrossEncoder, on_cpu, Options(on_cpu, frozenset(on_cpu.options))
    )
    obstacle = _obstacle(model)
    if obstacle is not None:
        raise ModelError(
            f"model {spec.name}: source {spec.source!r} {obstacle}, expected a sequence classifier"
            " of one logit and nothing around it; leave it as it is, or train a smaller"
            " cross-encoder (pgrerank train cross-encoder)"
        )
    loading.cutter(model, spec)  # which refuses a model without a tokenizer.json
    return model


def _obstacle(model: CrossEncoder) -> str | None:
    backbone = model.transformers_model
    parts = [type(module).__name__ for module in model.children()]
    architecture = type(backbone).__name__
    if len(parts) != 1 or not architecture.endswith("ForSequenceClassification"):
        return f"is made of {' and '.join(parts)} around a {architecture}"
    if model.num_labels != 1:
        return f"gives {model.num_labels} scores a pair"
    prompt = model.prompts.get(model.default_prompt_name or "")
    if prompt or model.supports("message"):
        return "puts a prompt around each pair"
    return None


def write_graph(name: str, model: CrossEncoder, folder: Path) -> Path:
    """Write the float32 graph, the tokenizer and the config to `folder`; returns the graph's path.

    Batch and length stay variable. Raises ModelError where PyTorch can't export the network.
    """
    graph = folder / "float32.onnx"
    backbone: Any = model.transformers_model
    backbone.set_attn_implementation("eager")  # its parts are what onnxruntime knows to fuse
    inputs = [field for field in model.preprocess(_EXAMPLE) if field in COLUMNS]
    try:
        with _quiet(), torch.inference_mode():
            _export(_Logits(backbone, inputs), model, inputs, graph)
    except Exception as error:  # the exporter's errors have no common base
        raise ModelError(
            f"model {name}: the network {type(backbone).__name__} can't be exported as an ONNX"
            f" graph: {_reason(error)}; leave it as it is, or train a cross-encoder of another"
            " architecture (pgrerank train cross-encoder)"
        ) from error
    model.tokenizer.save_pretrained(folder)
    backbone.config.save_pretrained(folder)
    return graph


class _Logits(nn.Module):
    def __init__(self, network: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self._network, self._inputs = network, inputs

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._network(**dict(zip(self._inputs, given, strict=True))).logits
        return logits


def _export(logits: nn.Module, model: CrossEncoder, inputs: list[str], graph: Path) -> None:
    example = model.preprocess(_EXAMPLE)
    size = sum(weights.nbytes for weights in model.parameters())
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        logits,
        tuple(example[field] for field in inputs),
        str(graph),
        input_names=inputs,
        output_names=["logits"],
        dynamic_shapes={"given": tuple(shape for _ in inputs)},
        dynamo=True,
        external_data=size > _MOST_IN_ONE_FILE,
        verbose=False,
    )


def quantise(graph: Path) -> Path:
    """Write the int8 graph beside the float32 one, and take that away; returns the new path.

    A weight's scale is its column's; activations get theirs as they come. Weights keep to seven
    bits (`reduce_range`), as sums of eight would overflow on CPUs without VNNI, where a worker may
    run; measured, that costs neither speed nor order.
    """
    target = graph.with_name(GRAPH)
    parts = list(graph.parent.glob(f"{graph.name}*"))
    size = sum(part.stat().st_size for part in parts)
    with _quiet():
        quantize_dynamic(
            graph,
            target,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=size / 4 > _MOST_IN_ONE_FILE,
        )
    for part in parts:
        part.unlink()
    return target


def _reason(error: BaseException) -> str:
    """Say in one line what an exporter's error, which tells a long story, came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'it gives no reason'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what exporter and quantiser say of their own ways, which no user can change."""
    kept = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            loading.quiet(),
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(kept)
