"""Rerankers on `sentence_transformers.CrossEncoder`, decoders that answer yes or no among them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from torch import nn

from pgrerank.errors import ModelError
from pgrerank.models import loading
from pgrerank.models.options import Options
from pgrerank.models.pairs import cut_pairs
from pgrerank.models.spec import ModelSpec
from pgrerank.models.windows import room_for_text

OPTIONS = frozenset({"batch_size", "device", "dtype", "max_tokens"})
_PROBE = "probe"
# A chat template's text touches ours, and a tokenizer may make tokens across the seams.
_SEAMS = 4


class CrossEncoderReranker:
    """Raw logits of a sequence classifier, or of a decoder the log-odds of yes against no."""

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        self._name = spec.name
        self._model = loading.load(CrossEncoder, spec, options)
        self._batch_size = options.count("batch_size") or loading.BATCH_SIZE
        self._precision = loading.precision(self._model, options)
        self._cutter = loading.cutter(self._model, spec)
        self._lock = threading.Lock()
        self.max_tokens = loading.window_of(self._model, options)
        self._model.max_seq_length = self.max_tokens
        if self._model.num_labels != 1:
            raise ModelError(
                f"model {spec.name}: source {spec.source!r} gives {self._model.num_labels} scores a"
                " pair, expected 1; a reranker needs a model trained for relevance"
            )
        own = self._model.keep_in_fp32_modules or []
        self._model.set_keep_in_fp32_modules(own + _heads(self._model))
        self._room = self._room_for_text()

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Score pairs; see :class:`pgrerank.models.Reranker`."""
        if not pairs:
            return np.zeros(0, np.float32)
        with self._lock:
            cut = cut_pairs(pairs, self._cutter, self._room)
            with self._precision(len(cut.windows) * self._room):
                scores = self._model.predict(
                    cut.windows,
                    batch_size=self._batch_size,
                    show_progress_bar=False,
                    activation_fn=nn.Identity(),
                )
        joined = cut.join(scores)
        if not np.isfinite(joined).all():
            index = int(np.argmin(np.isfinite(joined)))
            raise ModelError(f"model {self._name}: pair {index} gave {joined[index]}, not a score")
        return joined

    def _room_for_text(self) -> int:
        prompts, default = self._model.prompts, self._model.default_prompt_name
        prompt = prompts.get(default) if default else None
        features = self._model.preprocess([(_PROBE, _PROBE)], prompt=prompt)
        content = 2 * len(self._cutter.tokenise([_PROBE])[0].offsets)
        seams = _SEAMS if prompt or self._model.supports("message") else 0
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
