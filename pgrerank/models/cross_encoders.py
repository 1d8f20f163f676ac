"""Rerankers on `sentence_transformers.CrossEncoder`, decoders that answer yes or no among them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from torch import nn

from pgrerank.errors import ModelError
from pgrerank.models import device, loading
from pgrerank.models.inputs import Inputs
from pgrerank.models.instructions import KEPT, no_instruction, with_instruction
from pgrerank.models.options import Options
from pgrerank.models.pairs import join_scores, prepare_pairs
from pgrerank.models.passes import Passes
from pgrerank.models.spec import ModelSpec
from pgrerank.models.steps import Input, Prepared, run_all
from pgrerank.models.windows import room_for_text

OPTIONS = frozenset(
    {"batch_tokens", "device", "dtype", "instruction_template", "max_tokens", "prompts"}
)
_PROBE = "probe"
# A chat template's text touches ours, and a tokenizer may make tokens across the seams.
_SEAMS = 4


class CrossEncoderReranker:
    """Raw logits of a sequence classifier, or of a decoder the log-odds of yes against no.

    A decoder with a chat template that has a place for it takes instructions; others do where the
    option ``instruction_template`` says how.
    """

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        self.name = spec.name
        self.model = loading.load(CrossEncoder, spec, options)
        self.precision = loading.precision(options)
        self.batch_tokens = loading.batch_tokens(self.model, options)
        self.cutter = loading.cutter(self.model, spec)
        self.max_tokens = loading.window_of(self.model, options)
        self.model.max_seq_length = self.max_tokens
        if self.model.num_labels != 1:
            raise ModelError(
                f"model {spec.name}: source {spec.source!r} gives {self.model.num_labels} scores a"
                " pair, expected 1; a reranker needs a model trained for relevance"
            )
        own = self.model.keep_in_fp32_modules or []
        self.model.set_keep_in_fp32_modules(own + _heads(self.model))
        self.models = loading.copies(self.model, options)
        self.at_once = loading.at_once(self.models)
        self._template = options.template()
        self._plain = PairSteps(self, _prompt(self.model, options))
        self._instructed = functools.lru_cache(KEPT)(self._with_instruction)
        self.takes_instruction = self._template is not None or self._has_place_for_one()

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Score pairs; see :class:`pgrerank.models.Reranker`."""
        return np.array(run_all(self._plain, pairs), np.float32)

    def steps(self, instruction: str | None = None) -> PairSteps:
        """Its work; see :class:`pgrerank.models.Reranker`."""
        if instruction is None:
            return self._plain
        if not self.takes_instruction:
            raise no_instruction(self.name)
        return self._instructed(instruction)

    def _with_instruction(self, instruction: str) -> PairSteps:
        if self._template is None:
            return PairSteps(self, instruction)
        template = self._template
        return PairSteps(
            self, self._plain.prompt, lambda query: with_instruction(template, instruction, query)
        )

    def _has_place_for_one(self) -> bool:
        """Whether the chat template writes a prompt, which others leave out."""
        if not self.model.supports("message"):
            return False
        read = [self.model.preprocess([(_PROBE, _PROBE)], prompt=p) for p in ("one", "two words")]
        return not torch.equal(read[0]["input_ids"], read[1]["input_ids"])


class PairSteps:
    """The work of scoring pairs under one prompt."""

    def __init__(
        self,
        reranker: CrossEncoderReranker,
        prompt: str,
        rewrite: Callable[[str], str] | None = None,
    ) -> None:
        self.batch_tokens, self.at_once = reranker.batch_tokens, reranker.at_once
        self.prompt = prompt
        self._reranker = reranker
        self._rewrite = rewrite
        self._room = self._room_for_text()
        self._inputs = Inputs(reranker.model, reranker.cutter, prompt=prompt, role=None, pairs=True)
        self._passes = Passes(self._inputs, reranker.models)

    def prepare(self, items: Sequence[tuple[str, str]]) -> list[Prepared]:
        """Make the windows of pairs; see :class:`pgrerank.models.steps.Steps`."""
        if self._rewrite is not None:
            items = [(self._rewrite(query), document) for query, document in items]
        most = self._reranker.max_tokens if self._inputs.are_ids else None
        return prepare_pairs(items, self._reranker.cutter, self._room, self._inputs.make, most)

    def run(self, inputs: Sequence[Input]) -> list[float]:
        """Score one batch of windows."""
        return device.halving(self._run, inputs)

    def join(self, items: Sequence[Prepared], outputs: Sequence[Sequence[float]]) -> list[float]:
        """Join the scores of pairs' windows."""
        return join_scores(self._reranker.name, items, outputs)

    def _run(self, inputs: Sequence[Input]) -> list[float]:
        with self._passes.run(inputs) as (_, made):
            scores = device.to_array(made["scores"].reshape(-1)[: len(inputs)])
        return list(scores.tolist())

    def _room_for_text(self) -> int:
        model = self._reranker.model
        features = model.preprocess([(_PROBE, _PROBE)], prompt=self.prompt or None)
        content = 2 * len(self._reranker.cutter.tokenise([_PROBE])[0].offsets)
        seams = _SEAMS if self.prompt or model.supports("message") else 0
        overhead = int(features["attention_mask"].sum()) - content + seams
        return room_for_text(self._reranker.name, self._reranker.max_tokens, overhead)


def _prompt(model: CrossEncoder, options: Options) -> str:
    """The prompt that the options give, or the model's own."""
    own = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
    return (options.prompts() or {}).get("query", own or "")


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
