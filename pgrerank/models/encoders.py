"""Encoders on sentence-transformers: `SentenceTransformer` and `MultiVectorEncoder`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from pgrerank.errors import ModelError
from pgrerank.models import loading
from pgrerank.models.options import Options
from pgrerank.models.readable import Row, read_text
from pgrerank.models.reduction import of_length_one
from pgrerank.models.spec import Encoded, ModelSpec, ReadableTokens, Role
from pgrerank.models.windows import Window, room_for_text

OPTIONS = frozenset({"batch_size", "device", "dtype", "max_tokens", "prompts"})
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
_PROBE = "probe"


class _Made(NamedTuple):
    """The vectors of one window; None for what the model doesn't make."""

    embedding: NDArray[np.float32] | None
    tokens: NDArray[np.float32] | None
    row: Row | None


class _Encoder(ABC):
    """Cuts texts into windows, encodes those in batches of one length, and joins what came of them.

    An embedding is the mean of its windows', weighted by their tokens, and has the length 1.
    """

    def __init__(self, spec: ModelSpec, model: Any, options: Options) -> None:
        self._name = spec.name
        self._model = model
        self._options = options
        self._precision = loading.precision(model, options)
        self._batch_size = options.count("batch_size") or loading.BATCH_SIZE
        self._lock = threading.Lock()
        self._prompts = {role: _prompt(model, role) for role in ("query", "document")}
        self._cutter = loading.cutter(model, spec)
        self.max_tokens: int = self._window("document")
        self._rooms = {role: self._room(role) for role in ("query", "document")}
        probe = self._run([_PROBE], "document")[0]
        self.embedding_dims: int | None = (
            None if probe.embedding is None else probe.embedding.shape[0]
        )
        self.token_dims: int | None = None if probe.tokens is None else probe.tokens.shape[1]

    def encode(
        self, texts: Sequence[str], *, role: Role, embeddings: bool, tokens: bool
    ) -> Encoded:
        self._refuse("embeddings", embeddings and self.embedding_dims is None)
        self._refuse("token vectors", tokens and self.token_dims is None)
        windows, made = self._run_windows(texts, role)
        return self._join(windows, made, embeddings=embeddings, tokens=tokens)

    def encode_readable(self, texts: Sequence[str], *, role: Role) -> list[ReadableTokens]:
        self._refuse("token vectors", self.token_dims is None)
        windows, made = self._run_windows(texts, role)
        vectors = self._join(windows, made, embeddings=False, tokens=True).tokens or []
        rows = (self._readable(one.row) for one in made)
        return [
            ReadableTokens(
                own,
                *read_text(self._cutter, self._prompts[role], text, [next(rows) for _ in text]),
            )
            for own, text in zip(vectors, windows, strict=True)
        ]

    @abstractmethod
    def _run(self, texts: list[str], role: str) -> list[_Made]:
        """Encode one batch of windows."""

    def _window(self, role: str) -> int:
        """Tokens that the model reads at once in this role, special ones and prompt included."""
        window = loading.window_of(self._model, self._options)
        own = getattr(self._model[0], f"{role}_length", None)
        return min(window, own) if own else window

    def _room(self, role: str) -> int:
        """Tokens of a window that are left for text, found by trying: templates differ too much."""
        prompt = self._prompts[role]
        features = self._model.preprocess([_PROBE], prompt=prompt, task=role)
        if "attention_mask" not in features:  # static embeddings: neither attention nor windows
            return self._window(role)
        mask = features["attention_mask"].bool()
        if "query_expansion_positions" in features:
            mask = mask & ~features["query_expansion_positions"].bool()
        content = len(self._cutter.tokenise([_PROBE])[0].offsets)
        # At the seam with a prompt some tokenizers make one token more than apart.
        overhead = int(mask.sum()) - content + bool(prompt)
        return room_for_text(self._name, self._window(role), overhead)

    def _run_windows(
        self, texts: Sequence[str], role: Role
    ) -> tuple[list[list[Window]], list[_Made]]:
        """Cut texts, and encode the windows of them all."""
        with self._lock:
            tokenised = self._cutter.tokenise(texts)
            windows = [self._cutter.cut(text, self._rooms[role]) for text in tokenised]
            made = self._run_sorted([window for text in windows for window in text], role)
        return windows, made

    def _run_sorted(self, windows: list[Window], role: Role) -> list[_Made]:
        """Encode windows in batches of similar length, which pads least; the longest first."""
        order = sorted(range(len(windows)), key=lambda index: -windows[index].tokens)
        made: list[Any] = [None] * len(windows)
        for begin in range(0, len(order), self._batch_size):
            batch = order[begin : begin + self._batch_size]
            with self._precision(len(batch) * windows[batch[0]].tokens):
                done = self._run([windows[index].text for index in batch], role)
            for index, one in zip(batch, done, strict=True):
                made[index] = one
        return made

    def _join(
        self, windows: list[list[Window]], made: list[_Made], *, embeddings: bool, tokens: bool
    ) -> Encoded:
        all_embeddings, all_tokens = [], []
        parts = iter(made)
        for index, text in enumerate(windows):
            own = [next(parts) for _ in text]
            if embeddings:
                all_embeddings.append(self._finite(_mean_embedding(text, own), index))
            if tokens:
                vectors = [one.tokens for one in own if one.tokens is not None]
                all_tokens.append(self._finite(np.concatenate(vectors), index))
        stacked = None
        if embeddings:
            shape = (len(windows), self.embedding_dims or 0)
            stacked = np.array(all_embeddings, np.float32).reshape(shape)
        return Encoded(stacked, all_tokens if tokens else None)

    def _finite(self, vectors: NDArray[np.float32], index: int) -> NDArray[np.float32]:
        if not np.isfinite(vectors).all():
            raise ModelError(f"model {self._name}: text {index} gave NaN or infinity, not vectors")
        return vectors

    def _readable(self, row: Row | None) -> Row:
        if row is None or len(row.ids) != len(row.kept):
            raise ModelError(
                f"model {self._name}: a {type(self._model).__name__} that merges token vectors"
                " can't say which tokens they stand for; name a model that doesn't"
            )
        return row

    def _refuse(self, what: str, refused: bool) -> None:
        if refused:
            raise ModelError(
                f"model {self._name}: a {type(self._model).__name__} of this kind makes no {what};"
                " name another model for them"
            )


class SentenceTransformerEncoder(_Encoder):
    """Embeddings, and the last hidden states as token vectors of length 1, from one forward pass.

    Special tokens and prompt have no token vectors: each stored vector then belongs to a piece of
    the text, and windows add none of their own. Measured with all-MiniLM-L6-v2, nDCG@10 with and
    without them: .708 and .710 on SciFact, .383 and .381 on Cranfield.
    """

    _model: SentenceTransformer

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        super().__init__(spec, loading.load(SentenceTransformer, spec, options), options)

    def _run(self, texts: list[str], role: str) -> list[_Made]:
        encode = self._model.encode_query if role == "query" else self._model.encode_document
        rows = encode(
            texts,
            prompt=self._prompts[role],
            batch_size=len(texts),
            show_progress_bar=False,
            output_value=None,
        )
        return [self._made(row) for row in rows]

    def _made(self, row: Any) -> _Made:
        embedding = _floats(row["sentence_embedding"])
        if "token_embeddings" not in row:
            return _Made(embedding, None, None)
        attended, ids = _attended(row), row["input_ids"].cpu().numpy()
        after_prompt = attended.cumsum() > row.get("prompt_length", 0)
        kept = attended & after_prompt & np.isin(ids, self._special_ids, invert=True)
        tokens = of_length_one(_floats(row["token_embeddings"])[kept])
        return _Made(embedding, tokens, Row(ids, kept))

    @cached_property
    def _special_ids(self) -> list[int]:
        # Not all_special_ids, which has those of unknown words too: these stand for text.
        names = ("bos", "cls", "sep", "eos", "pad")
        found = [getattr(self._model.tokenizer, f"{name}_token_id", None) for name in names]
        return [token for token in found if token is not None]


class MultiVectorEncoderEncoder(_Encoder):
    """Token vectors of a late-interaction model, with its prefixes, masks and query expansion."""

    _model: MultiVectorEncoder

    def __init__(self, spec: ModelSpec) -> None:
        options = Options(spec, OPTIONS)
        super().__init__(spec, loading.load(MultiVectorEncoder, spec, options), options)

    def _window(self, role: str) -> int:
        window = super()._window(role)
        expansion = getattr(self._model[0], "query_expansion", None)
        if role != "query" or expansion is None or expansion["strategy"] != "fixed":
            return window
        # One short of the width: the library takes a full one for a query that it had to cut.
        return min(window, int(expansion["length"]) - 1)

    def _run(self, texts: list[str], role: str) -> list[_Made]:
        encode = self._model.encode_query if role == "query" else self._model.encode_document
        rows = encode(
            texts,
            prompt=self._prompts[role],
            batch_size=len(texts),
            show_progress_bar=False,
            output_value=None,
        )
        return [self._made(row) for row in rows]

    def _made(self, row: Any) -> _Made:
        kept = _attended(row)  # by now the mask says what is scored
        tokens = _floats(row["token_embeddings"])[kept]
        return _Made(None, tokens, Row(row["input_ids"].cpu().numpy(), kept))


def _prompt(model: Any, role: str) -> str:
    found = [model.prompts.get(name) for name in _PROMPT_NAMES[role]]
    return next((prompt for prompt in found if prompt), "")


def _attended(row: Any) -> NDArray[np.bool_]:
    return np.asarray(row["attention_mask"].cpu().numpy(), np.bool_)


def _floats(tensor: Any) -> NDArray[np.float32]:
    return np.asarray(tensor.float().cpu().numpy(), np.float32)


def _mean_embedding(windows: list[Window], made: list[_Made]) -> NDArray[np.float32]:
    weights = np.array([max(window.tokens, 1) for window in windows], np.float32)
    stacked = np.array([one.embedding for one in made], np.float32)
    return of_length_one(weights @ stacked)
