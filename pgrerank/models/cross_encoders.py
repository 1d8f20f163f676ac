"""Rerankers on `sentence_transformers.CrossEncoder`, decoders that answer yes or no among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from torch import nn

from pgrerank.errors import ModelError
from pgrerank.models import device, loading
from pgrerank.models.inputs import Inputs
from pgrerank.models.options import Options
from pgrerank.models.pairs import join_scores, prepare_pairs
from pgrerank.models.passes import Passes
from pgrerank.models.spec import ModelSpec
from pgrerank.models.steps import Input, Prepared, Steps, run_all
from pgrerank.models.windows import room_for_text

OPTIONS = frozenset({"batch_tokens", "device", "dtype", "max_tokens"})
_PROBE = "probe"
# A chat template's text touches ours, and a tokenizer may make tokens across the seams.
_SEAMS = 4


class CrossEncoderReranker:
    """Raw logits of a sequence classifier, or of a decoder the log-odds of yes against no."""

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        self._name = spec.name
        self._model = loading.load(CrossEncoder, spec, options)
        self.batch_tokens = loading.batch_tokens(self._model, options)
        self._cutter = loading.cutter(self._model, spec)
        self.max_tokens = loading.window_of(self._model, options)
        self._model.max_seq_length = self.max_tokens
        if self._model.num_labels != 1:
            raise ModelError(
                f"model {spec.name}: source {spec.source!r} gives {self._model.num_labels} scores a"
                " pair, expected 1; a reranker needs a model trained for relevance"
            )
        own = self._model.keep_in_fp32_modules or []
        self._model.set_keep_in_fp32_modules(own + _heads(self._model))
        prompts, default = self._model.prompts, self._model.default_prompt_name
        self._prompt = prompts.get(default, "") if default else ""
        self._room = self._room_for_text()
        self._inputs = Inputs(self._model, self._cutter, prompt=self._prompt, role=None, pairs=True)
        models = loading.copies(self._model, options)
        self.at_once = loading.at_once(models)
        self._passes = Passes(self._inputs, models)

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Score pairs; see :class:`pgrerank.models.Reranker`."""
        return np.array(run_all(self, pairs), np.float32)

    def steps(self) -> Steps:
        """Its work; see :class:`pgrerank.models.Reranker`."""
        return self

    def prepare(self, items: Sequence[tuple[str, str]]) -> list[Prepared]:
        """Make the windows of pairs; see :class:`pgrerank.models.steps.Steps`."""
        most = self.max_tokens if self._inputs.are_ids else None
        return prepare_pairs(items, self._cutter, self._room, self._inputs.make, most)

    def run(self, inputs: Sequence[Input]) -> list[float]:
        """Score one batch of windows."""
        return device.halving(self._run, inputs)

    def join(self, items: Sequence[Prepared], outputs: Sequence[Sequence[float]]) -> list[float]:
        """Join the scores of pairs' windows."""
        return join_scores(self._name, items, outputs)

    def _run(self, inputs: Sequence[Input]) -> list[float]:
        with self._passes.run(inputs) as (_, made):
            scores = device.to_array(made["scores"].reshape(-1)[: len(inputs)])
        return list(scores.tolist())

    def _room_for_text(self) -> int:
        features = self._model.preprocess([(_PROBE, _PROBE)], prompt=self._prompt or None)
        content = 2 * len(self._cutter.tokenise([_PROBE])[0].offsets)
        seams = _SEAMS if self._prompt or self._model.supports("message") else 0
        overhead = int(features["attention_mask"].sum()) - content + seams
        return room_for_text(self._name, self.max_tokens, overhead)


def _heads(model: CrossEncoder) -> list[str]:
    """Name the linear layers that make the logits, which stay float32.

    In bfloat16 a logit of 8 has a step of 1/16, and scores would tie.
    """
    backbone: Any = model.transformers_model
    vocabulary = backbone.get_output_embeddings() if backbone is not None else None
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and (module.out_features == 1 or module is vocabulary)
    ]
