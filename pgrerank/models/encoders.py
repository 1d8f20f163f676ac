"""Encoders on sentence-transformers: `SentenceTransformer` and `MultiVectorEncoder`."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from pgrerank.errors import ModelError
from pgrerank.models import device, loading
from pgrerank.models.inputs import Inputs
from pgrerank.models.instructions import KEPT, no_instruction, prefix, template_of
from pgrerank.models.options import Options
from pgrerank.models.passes import Passes
from pgrerank.models.readable import Row, read_text
from pgrerank.models.reduction import of_length_one
from pgrerank.models.spec import Encoded, ModelSpec, ReadableTokens, Role, Span, Vectors
from pgrerank.models.steps import Input, Prepared, run_all
from pgrerank.models.windows import Window, room_for_text, without_surrogates

OPTIONS = frozenset(
    {"batch_tokens", "device", "dtype", "instruction_template", "max_tokens", "prompts"}
)
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
_PROBE = "probe"
Kept = NDArray[np.bool_]


class _Made(NamedTuple):
    """The vectors of one window, and what the model read; None for what was not made."""

    embedding: NDArray[np.float32] | None
    tokens: NDArray[np.float32] | None
    row: Row | None


class _Encoder(ABC):
    """Cuts texts into windows, encodes those in batches of similar length, and joins them.

    An embedding is the mean of its windows', weighted by their tokens, and has the length 1.
    """

    has_places = False

    def __init__(self, spec: ModelSpec, model: Any, options: Options) -> None:
        self.name = spec.name
        self.model = model
        self.precision = loading.precision(options)
        self.batch_tokens = loading.batch_tokens(model, options)
        self._options = options
        self.cutter = loading.cutter(model, spec)
        self.models = loading.copies(model, options)
        self.at_once = loading.at_once(self.models)
        self.max_tokens: int = self.window("document")
        self._readings: dict[Role, Reading] = {
            "query": Reading(self, "query", _prompt(model, "query")),
            "document": Reading(self, "document", _prompt(model, "document")),
        }
        self.room = self._readings["document"].room
        self._template = options.template() or template_of(self._readings["query"].prompt)
        self._instructed = functools.lru_cache(KEPT)(self._with_instruction)
        self.takes_instruction = self._template is not None
        probing = self._readings["document"].steps(embeddings=True, tokens=True, readable=False)
        [probe] = probing.run(probing.prepare([_PROBE])[0].inputs)
        self.embedding_dims: int | None = (
            None if probe.embedding is None else probe.embedding.shape[0]
        )
        self.token_dims: int | None = None if probe.tokens is None else probe.tokens.shape[1]

    def encode(
        self, texts: Sequence[str], *, role: Role, embeddings: bool, tokens: bool
    ) -> Encoded:
        found = run_all(self.steps(role, embeddings=embeddings, tokens=tokens), texts)
        stacked = None
        if embeddings:
            shape = (len(texts), self.embedding_dims or 0)
            stacked = np.array([one.embedding for one in found], np.float32).reshape(shape)
        return Encoded(stacked, [one.tokens for one in found] if tokens else None)

    def offsets(self, texts: Sequence[str]) -> list[list[Span]]:
        return self.cutter.offsets(texts)

    def encode_readable(self, texts: Sequence[str], *, role: Role) -> list[ReadableTokens]:
        return run_all(self.steps(role, embeddings=False, tokens=True, readable=True), texts)

    def steps(
        self,
        role: Role,
        *,
        embeddings: bool,
        tokens: bool,
        readable: bool = False,
        instruction: str | None = None,
    ) -> EncodingSteps:
        self._refuse("embeddings", embeddings and self.embedding_dims is None)
        self._refuse("token vectors", tokens and self.token_dims is None)
        reading = self._readings[role]
        if instruction is not None and role == "query":
            reading = self._instructed(instruction)
        return reading.steps(embeddings=embeddings, tokens=tokens, readable=readable)

    def _with_instruction(self, instruction: str) -> Reading:
        if self._template is None:
            raise no_instruction(self.name)
        return Reading(self, "query", prefix(self.name, self._template, instruction))

    def window(self, role: str) -> int:
        """Tokens that the model reads at once in this role, special ones and prompt included."""
        window = loading.window_of(self.model, self._options)
        own = getattr(self.model[0], f"{role}_length", None)
        return min(window, own) if own else window

    @abstractmethod
    def kept(self, read: Mapping[str, Any], made: Mapping[str, Any]) -> Kept:
        """Which places of a batch have a token vector, given what was read and made of it."""

    def vectors(self, states: torch.Tensor) -> torch.Tensor:
        """The token vectors that states of shape [tokens, dims] are, on the device."""
        return states

    def _refuse(self, what: str, refused: bool) -> None:
        if refused:
            raise ModelError(
                f"model {self.name}: a {type(self.model).__name__} of this kind makes no {what};"
                " name another model for them"
            )


class Reading:
    """How texts are read in a role under one prompt, and the work of encoding them so."""

    def __init__(self, encoder: _Encoder, role: Role, prompt: str) -> None:
        self.role: Role = role
        self.prompt = prompt
        self.inputs = Inputs(encoder.model, encoder.cutter, prompt=prompt, role=role)
        self.passes = Passes(self.inputs, encoder.models, task=role)
        self.room = self._room(encoder)
        self._encoder = encoder
        self._steps: dict[tuple[bool, ...], EncodingSteps] = {}

    def steps(self, *, embeddings: bool, tokens: bool, readable: bool) -> EncodingSteps:
        """The work that makes these vectors: one object."""
        kind = (embeddings, tokens, readable)
        if kind not in self._steps:
            self._steps[kind] = EncodingSteps(self._encoder, self, *kind)
        return self._steps[kind]

    def _room(self, encoder: _Encoder) -> int:
        """Tokens of a window that are left for text, found by trying: templates differ too much."""
        features = encoder.model.preprocess([_PROBE], prompt=self.prompt, task=self.role)
        if "attention_mask" not in features:  # static embeddings: neither attention nor windows
            return encoder.window(self.role)
        mask = features["attention_mask"].bool()
        if "query_expansion_positions" in features:
            mask = mask & ~features["query_expansion_positions"].bool()
        content = len(encoder.cutter.tokenise([_PROBE])[0].offsets)
        # At the seam with a prompt some tokenizers make one token more than apart.
        overhead = int(mask.sum()) - content + bool(self.prompt)
        return room_for_text(encoder.name, encoder.window(self.role), overhead)


class EncodingSteps:
    """Steps that map a text to its Vectors, or to its ReadableTokens."""

    def __init__(
        self, encoder: _Encoder, reading: Reading, embeddings: bool, tokens: bool, readable: bool
    ) -> None:
        self.batch_tokens, self.at_once = encoder.batch_tokens, encoder.at_once
        self._encoder = encoder
        self._reading = reading
        self._embeddings, self._tokens, self._readable = embeddings, tokens, readable
        self._inputs = reading.inputs
        self._window = encoder.window(reading.role)

    def prepare(self, items: Sequence[str]) -> list[Prepared]:
        """Make the windows of texts; see :class:`pgrerank.models.steps.Steps`."""
        texts = [without_surrogates(text) for text in items]
        found: dict[int, Prepared] = {}
        if self._inputs.are_ids:
            for place, one in enumerate(self._inputs.make(texts, [0] * len(items))):
                if one.tokens <= self._window:
                    found[place] = Prepared([one], [Window(one.source, one.tokens)])
        beyond = [place for place in range(len(items)) if place not in found]
        tokenised = self._encoder.cutter.tokenise([texts[place] for place in beyond])
        for place, text in zip(beyond, tokenised, strict=True):
            windows = self._encoder.cutter.cut(text, self._reading.room)
            made = self._inputs.make([w.text for w in windows], [w.tokens for w in windows])
            found[place] = Prepared(made, windows)
        return [found[place] for place in range(len(items))]

    def run(self, inputs: Sequence[Input]) -> list[_Made]:
        """Encode one batch of windows."""
        return device.halving(self._run, inputs)

    def join(self, items: Sequence[Prepared], outputs: Sequence[Sequence[_Made]]) -> list[Any]:
        """Join the vectors of texts' windows."""
        pairs = zip(items, outputs, strict=True)
        found = [self._joined(place, item.shape, own) for place, (item, own) in enumerate(pairs)]
        if not self._readable:
            return found
        return [
            self._read(one.tokens, item.shape, own)
            for one, item, own in zip(found, items, outputs, strict=True)
        ]

    def _run(self, inputs: Sequence[Input]) -> list[_Made]:
        model = self._encoder.model
        nothing: list[Any] = [None] * len(inputs)
        embeddings, tokens, rows = nothing, nothing, nothing
        with self._reading.passes.run(inputs) as (read, made):
            if self._embeddings and "sentence_embedding" in made:
                dims = getattr(model, "truncate_dim", None)
                embeddings = list(device.to_array(made["sentence_embedding"][: len(inputs), :dims]))
            if self._tokens and "token_embeddings" in made:
                kept = self._encoder.kept(read, made)[: len(inputs)]
                tokens = self._tokens_of(made["token_embeddings"], kept)
                if self._readable:
                    ids = read["input_ids"].numpy()[: len(inputs)]
                    rows = [Row(*row) for row in zip(ids, kept, strict=True)]
        return [_Made(*one) for one in zip(embeddings, tokens, rows, strict=True)]

    def _tokens_of(self, states: torch.Tensor, kept: Kept) -> list[NDArray[np.float32]]:
        """The token vectors of each window, moved here in one piece."""
        places = torch.from_numpy(np.flatnonzero(kept)).to(states.device)
        chosen = states.flatten(0, 1).index_select(0, places)
        vectors = device.to_array(self._encoder.vectors(chosen.float()))
        return np.split(vectors, kept.sum(axis=1).cumsum()[:-1])

    def _joined(self, index: int, windows: list[Window], own: Sequence[_Made]) -> Vectors:
        embedding = tokens = None
        if self._embeddings:
            embedding = self._finite(_mean_embedding(windows, own), index)
        if self._tokens:
            parts = [one.tokens for one in own if one.tokens is not None]
            tokens = self._finite(parts[0] if len(parts) == 1 else np.concatenate(parts), index)
        return Vectors(embedding, tokens)

    def _read(self, vectors: Any, windows: list[Window], own: Sequence[_Made]) -> ReadableTokens:
        rows = [self._row(one.row) for one in own]
        prompt = self._reading.prompt
        return ReadableTokens(vectors, *read_text(self._encoder.cutter, prompt, windows, rows))

    def _row(self, row: Row | None) -> Row:
        if row is None or len(row.ids) != len(row.kept):
            raise ModelError(
                f"model {self._encoder.name}: a {type(self._encoder.model).__name__} that merges"
                " token vectors can't say which tokens they stand for; name a model that doesn't"
            )
        return row

    def _finite(self, vectors: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        if not np.isfinite(vectors).all():
            raise ModelError(
                f"model {self._encoder.name}: text {index} gave NaN or infinity, not vectors"
            )
        return vectors


class SentenceTransformerEncoder(_Encoder):
    """Embeddings, and the last hidden states as token vectors of length 1, from one forward pass.

    Special tokens and prompt have no token vectors: each stored vector then belongs to a piece of
    the text, and windows add none of their own. Measured with all-MiniLM-L6-v2, nDCG@10 with and
    without them: .708 and .710 on SciFact, .383 and .381 on Cranfield.
    """

    has_places = True

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        super().__init__(spec, loading.load(SentenceTransformer, spec, options), options)

    def kept(self, read: Mapping[str, Any], _made: Mapping[str, Any]) -> Kept:
        """Those of the text."""
        attended = np.asarray(read["attention_mask"].numpy(), np.bool_)
        after_prompt = attended.cumsum(axis=1) > read.get("prompt_length", 0)
        ordinary = np.isin(read["input_ids"].numpy(), self._special_ids, invert=True)
        return np.asarray(attended & after_prompt & ordinary)

    def vectors(self, states: torch.Tensor) -> torch.Tensor:
        """The states brought to length 1."""
        return torch.nn.functional.normalize(states, dim=-1)

    @cached_property
    def _special_ids(self) -> list[int]:
        # Not all_special_ids, which has those of unknown words too: these stand for text.
        names = ("bos", "cls", "sep", "eos", "pad")
        found = [getattr(self.model.tokenizer, f"{name}_token_id", None) for name in names]
        return [token for token in found if token is not None]


class MultiVectorEncoderEncoder(_Encoder):
    """Token vectors of a late-interaction model, with its prefixes, masks and query expansion."""

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        super().__init__(spec, loading.load(MultiVectorEncoder, spec, options), options)

    def window(self, role: str) -> int:
        """One short of a fixed width: the library takes a full one for a query that it cut."""
        window = super().window(role)
        expansion = getattr(self.model[0], "query_expansion", None)
        if role != "query" or expansion is None or expansion["strategy"] != "fixed":
            return window
        return min(window, int(expansion["length"]) - 1)

    def kept(self, _read: Mapping[str, Any], made: Mapping[str, Any]) -> Kept:
        """Those that the mask says are scored."""
        return np.asarray(made["attention_mask"].cpu().numpy(), np.bool_)


def _prompt(model: Any, role: str) -> str:
    found = [model.prompts.get(name) for name in _PROMPT_NAMES[role]]
    return next((prompt for prompt in found if prompt), "")


def _mean_embedding(windows: list[Window], made: Sequence[_Made]) -> NDArray[np.float32]:
    weights = np.array([max(window.tokens, 1) for window in windows], np.float32)
    stacked = np.array([one.embedding for one in made], np.float32)
    return of_length_one(weights @ stacked)
