"""Cross-encoders that are an ONNX graph and a tokenizer in a folder."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgrerank.errors import ModelError
from pgrerank.models.instructions import no_instruction
from pgrerank.models.options import Options
from pgrerank.models.pairs import join_scores, prepare_pairs
from pgrerank.models.source import locate
from pgrerank.models.spec import ModelSpec, Precision
from pgrerank.models.steps import Input, Prepared, Steps, run_all
from pgrerank.models.windows import LARGEST_WINDOW, Cutter, room_for_text

OPTIONS = frozenset({"file", "max_tokens"})
_DEFAULT_WINDOW = 512
_INT8 = (b"MatMulInteger", b"QLinearMatMul", b"DynamicQuantizeMatMul", b"QGemm")
COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
"""What a graph may ask for."""
GRAPH = "model.onnx"
"""The graph's file where the option `file` names none."""


class OnnxReranker:
    """Runs each pair by itself, one pair a processor at a time.

    Graphs quantised to int8 choose their scale from all of a batch, so that a pair's score would
    depend on its neighbours (measured: by up to 0.9), and padding costs more than batching gains
    (measured on two cores: 98 pairs/s, against 77 at the best batch size).
    """

    batch_tokens, at_once = 4096, 1
    takes_instruction = False

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        folder = _folder(spec)
        self._name = spec.name
        graph = folder / (options.text("file") or GRAPH)
        self._session = _session(spec, graph)
        self.graph_bytes = graph.stat().st_size
        self.precision = _precision(graph)
        self._inputs = _inputs(spec, self._session)
        tokenizer = _tokenizer(spec, folder)
        self._cutter = Cutter(tokenizer)
        self._pool = ThreadPoolExecutor(_processors(), "pgrerank-onnx")
        self.max_tokens = min(_window(folder), options.count("max_tokens") or LARGEST_WINDOW)
        overhead = tokenizer.num_special_tokens_to_add(is_pair=True)
        self._room = room_for_text(spec.name, self.max_tokens, overhead)
        self.score([("probe", "probe")])

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Score pairs; see :class:`pgrerank.models.Reranker`."""
        return np.array(run_all(self, pairs), np.float32)

    def steps(self, instruction: str | None = None) -> Steps:
        """Its work; see :class:`pgrerank.models.Reranker`."""
        if instruction is not None:
            raise no_instruction(self._name)
        return self

    def prepare(self, items: Sequence[tuple[str, str]]) -> list[Prepared]:
        """Make the windows of pairs; see :class:`pgrerank.models.steps.Steps`."""
        return prepare_pairs(items, self._cutter, self._room, self._make, self.max_tokens)

    def run(self, inputs: Sequence[Input]) -> list[float]:
        """Score windows, the longest first, so that no processor is left with it at the end."""
        return list(self._pool.map(self._logit, inputs))

    def join(self, items: Sequence[Prepared], outputs: Sequence[Sequence[float]]) -> list[float]:
        """Join the scores of pairs' windows."""
        return join_scores(self._name, items, outputs)

    def _make(self, pairs: Sequence[tuple[str, str]], _tokens: Sequence[int]) -> list[Input]:
        made = self._cutter.ids(pairs, types=True)
        return [
            Input(pair, len(ids), ids, types)
            for pair, (ids, types) in zip(pairs, made, strict=True)
        ]

    def _logit(self, one: Input) -> float:
        columns = {
            "input_ids": one.ids,
            "attention_mask": np.ones(one.tokens, np.int64),
            "token_type_ids": one.types,
        }
        feed = {name: np.asarray(columns[name], np.int64)[np.newaxis] for name in self._inputs}
        logits = np.asarray(self._session.run(None, feed)[0])
        if logits.size != 1:
            raise ModelError(
                f"model {self._name}: its first output has the shape {list(logits.shape)} for a"
                " pair, expected one logit; a reranker needs a model trained for relevance"
            )
        if not np.isfinite(logits).all():
            raise ModelError(f"model {self._name}: a pair gave {logits.item()}, not a score")
        return float(logits.item())


def _folder(spec: ModelSpec) -> Path:
    source = locate(spec)
    if source.folder is None:
        raise ModelError(
            f"model {spec.name}: loader onnx reads a folder or package://, not the hub name"
            f" {spec.source!r}; download it, and give the folder"
        )
    return source.folder


def _session(spec: ModelSpec, file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelError(
            f"model {spec.name}: {str(file)!r} can't be loaded as an ONNX graph: {error};"
            " name the graph by the option file"
        ) from error


def _precision(file: Path) -> Precision:
    """That of its products, which graphs name as they stand in the file."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        is_int8 = any(graph.find(product) >= 0 for product in _INT8)
    return Precision("int8" if is_int8 else "float32", "its graph was made so")


def _inputs(spec: ModelSpec, session: onnxruntime.InferenceSession) -> list[str]:
    asked = [found.name for found in session.get_inputs()]
    unknown = sorted(set(asked) - set(COLUMNS))
    if unknown:
        raise ModelError(
            f"model {spec.name}: its graph asks for {unknown[0]!r}, and a tokenizer gives"
            f" {', '.join(COLUMNS)}; export it as a sequence classifier"
        )
    return asked


def _tokenizer(spec: ModelSpec, folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(
            f"model {spec.name}: {str(folder)!r} has no usable tokenizer.json: {error}"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _window(folder: Path) -> int:
    """Tokens that the model reads at once: the least that any of its files says, else 512."""
    limits = [
        _json(folder / "config.json").get("max_position_embeddings"),
        _json(folder / "tokenizer_config.json").get("model_max_length"),
        (_json(folder / "tokenizer.json").get("truncation") or {}).get("max_length"),
    ]
    # Tokenizers without a limit write 10^30.
    return min((int(limit) for limit in limits if limit and limit < 10**6), default=_DEFAULT_WINDOW)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _processors() -> int:
    """Processors this process may use, which in a container are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
