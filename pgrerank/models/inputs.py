"""Makes what a model reads: token ids, once for each window, and padded to a batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pgrerank.models.steps import Input
from pgrerank.models.windows import Cutter, Text

_COLUMNS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_PROBES: dict[bool, list[Any]] = {
    False: ["Probe", " two Words, and a longer probe. "],
    True: [("Probe", "two Words"), ("another ", " longer probe, of. ")],
}
_MULTIPLE = 8
"""Of tokens in a row on a GPU, whose matrix units read so many at once; in longer rows an eighth to
a sixteenth of them, so that there are few shapes."""


class Inputs:
    """The inputs of a model, for texts under one prompt and role, or for pairs.

    Whether ids can be made here, straight from the tokenizer, is found by trying: where the library
    makes anything else of a few texts (chat templates, query expansion, own modules), all are left
    to it.
    """

    def __init__(
        self, model: Any, cutter: Cutter, *, prompt: str = "", role: str | None, pairs: bool = False
    ) -> None:
        self._model = model
        self._cutter = cutter
        self._prompt = prompt
        self._role = {} if role is None else {"task": role}
        self._lock = threading.Lock()
        self._multiple = _MULTIPLE if model.device.type == "cuda" else 1
        self._fixed: dict[str, Any] = {}
        self._columns: list[str] = []
        probes: list[Any] = list(_PROBES[pairs])
        can_be = not (pairs and prompt)
        self.are_ids = can_be and self._agrees(self._library(probes), probes)

    def make(self, sources: Sequence[Text], tokens: Sequence[int]) -> list[Input]:
        """The inputs of texts, or of pairs, as they are, however long.

        ``tokens`` are their lengths without special ones, where the model makes its ids itself.
        """
        if self.are_ids:
            return self._ids(sources)
        return [Input(*one) for one in zip(sources, tokens, strict=True)]

    def collate(self, inputs: Sequence[Input]) -> dict[str, Any]:
        """A batch as the model takes it: tensors of shape [inputs, longest]."""
        if not self.are_ids:
            return self._library([one.source for one in inputs])
        return self._padded(inputs, self._multiple) | self._fixed

    def _library(self, sources: list[Any]) -> dict[str, Any]:
        # A tokenizer's padding and truncation are its state, and are set at each call.
        with self._lock:
            features = self._model.preprocess(sources, prompt=self._prompt or None, **self._role)
        return dict(features)

    def _ids(self, sources: Sequence[Any]) -> list[Input]:
        texts = [self._prompt + text for text in sources] if self._prompt else sources
        made = self._cutter.ids(texts, types="token_type_ids" in self._columns)
        return [
            Input(source, len(ids), ids, types)
            for source, (ids, types) in zip(sources, made, strict=True)
        ]

    def _padded(self, inputs: Sequence[Input], multiple: int) -> dict[str, Any]:
        width = max(one.tokens for one in inputs)
        if multiple > 1:
            multiple = max(multiple, 2 ** (width - 1).bit_length() // 16)
        width = -(-width // multiple) * multiple
        tokenizer = self._model.tokenizer
        shape = (len(inputs), width)
        found = {
            "input_ids": np.full(shape, tokenizer.pad_token_id or 0, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.full(shape, tokenizer.pad_token_type_id, np.int64),
        }
        on_left = tokenizer.padding_side == "left"
        for row, one in enumerate(inputs):
            own = slice(width - one.tokens, width) if on_left else slice(0, one.tokens)
            found["input_ids"][row, own] = np.asarray(one.ids)
            found["attention_mask"][row, own] = 1
            found["token_type_ids"][row, own] = 0 if one.types is None else one.types
        return {name: torch.from_numpy(found[name]) for name in self._columns}

    def _agrees(self, features: dict[str, Any], probes: list[Any]) -> bool:
        """Whether ids that are made here are those of the library."""
        tensors = {n: value for n, value in features.items() if isinstance(value, torch.Tensor)}
        self._fixed = {n: value for n, value in features.items() if n not in tensors}
        if not {"input_ids", "attention_mask"} <= tensors.keys() <= _COLUMNS:
            return False
        self._columns = list(tensors)
        ours = self._padded(self._ids(probes), 1)
        return all(torch.equal(ours[name], tensors[name].cpu()) for name in tensors)
