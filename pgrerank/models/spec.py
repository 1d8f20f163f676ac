"""The specification of a model, and the protocols of encoders and rerankers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pgrerank.models.steps import Remote, Steps

Kind = Literal["embedding", "late_interaction", "cross_encoder", "listwise"]
Loader = Literal["sentence_transformer", "multi_vector_encoder", "cross_encoder", "onnx", "http"]
Role = Literal["query", "document"]

LOADERS: Mapping[Kind, tuple[Loader, ...]] = {
    "embedding": ("sentence_transformer", "http"),
    "late_interaction": ("multi_vector_encoder", "sentence_transformer", "http"),
    "cross_encoder": ("cross_encoder", "onnx", "http"),
    "listwise": ("http",),
}
"""Which loaders make models of a kind; the first is the default."""
Span = tuple[int, int]


@dataclass(frozen=True)
class ModelSpec:
    """A model as it is registered.

    ``source`` is a folder, a hub name (``organisation/model``), or ``package://NAME/sub/folder``: a
    folder inside the installed Python package that is imported as NAME; or, for the loader http,
    the URL that requests are posted to. ``revision`` is a branch, tag or commit of a hub name.

    ``options`` of models that are loaded here, all of them optional:

    * ``max_tokens``: a smaller window than the model's own, special tokens and prompt included
    * ``dtype`` (not onnx): of the weights, ``auto`` (the default: bfloat16 on a GPU or CPU that is
      faster by it, else float16 on a GPU and float32 on a CPU), ``float32``, ``bfloat16``,
      ``float16``
    * ``device`` (not onnx): as PyTorch names it, or several with commas between them, each of which
      gets a copy of the model; by default all GPUs, or the best one there is
    * ``batch_tokens`` (not onnx): tokens in one forward pass, padding included; by default 1856
      on a CPU, and 32768 on a GPU
    * ``prompts``: texts put before a ``query`` and a ``document`` (encoders), or before the
      ``query`` (cross-encoders), in place of the model's own
    * ``instruction_template``: how an instruction is written into a query, such as
      ``Instruct: {instruction}\nQuery: {query}``; by default as in the model's own prompt, if that
      has such a form, or as its chat template has it
    * ``file`` (onnx): the graph's path inside the folder, by default ``model.onnx``

    ``options`` of models behind an endpoint:

    * ``dialect``: what it speaks: ``tei``, ``cohere``, ``jina``, ``voyage`` or ``vllm`` for
      cross-encoders; these or ``openai`` for embeddings; ``jina`` or ``vllm`` for token vectors;
      ``openai``, the default, for language models
    * ``model``: the name that it has there, where the endpoint wants one
    * ``key``: NAME, where the worker's environment has the key as ``PGRERANK_KEY_NAME``;
      ``key_header``: the header for it, if that is not ``Authorization: Bearer``
    * ``batch``: texts in a request, by default what the provider allows; ``concurrency``: requests
      at a time, by default 8; ``hedge_ms``: after so many milliseconds without an answer a second
      request is sent
    * ``scores`` (cross-encoders): ``probability`` or ``raw``, where it differs from the dialect's
    * ``dims`` (encoders): the dimensions that are asked for; ``max_characters``: of a text that is
      sent as a whole, by default 8000; ``prompts``: as above
    * ``instruction_template``: as above; Voyage's rerankers and language models take instructions
      without it
    * ``window`` (language models): documents that are ordered at a time, by default 20;
      ``max_characters``: of a document that is read, by default 1500; ``prices``: what a million
      tokens ``read`` and ``written`` cost
    """

    name: str
    kind: Kind
    loader: Loader
    source: str
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Precision(NamedTuple):
    """What a model's weights are kept in, such as ``bfloat16``, and why."""

    name: str
    why: str


class Encoded(NamedTuple):
    """What an encoder made of n texts.

    ``embeddings``: float32 of shape [n, dims], each of length 1; ``tokens``: for each text its
    token vectors, float32 of shape [tokens, dims]. What was not asked for is None.
    """

    embeddings: NDArray[np.float32] | None
    tokens: list[NDArray[np.float32]] | None


class Vectors(NamedTuple):
    """A text's vectors: ``embedding`` float32 [dims], ``tokens`` float32 [count, dims]; or None."""

    embedding: NDArray[np.float32] | None
    tokens: NDArray[np.float32] | None


class ReadableTokens(NamedTuple):
    """A text's token vectors and what each of them stands for, in one order.

    ``vectors``: float32 of shape [tokens, dims]. ``texts``: a stretch of the text for each, or the
    tokenizer's spelling of what is no part of it: prompts, special tokens, query expansion.
    ``spans``: the stretch's first character and the one after its last, or None.
    """

    vectors: NDArray[np.float32]
    texts: list[str]
    spans: list[Span | None]


class Encoder(Protocol):
    """Makes embeddings, token vectors, or both in one pass.

    A ``dims`` of None says that the model does not make that kind of vector. ``max_tokens`` is the
    window for documents, special tokens and prompt included; longer texts are encoded in windows.
    It is None where an endpoint keeps it. May be used from several threads, which then wait for one
    another.
    """

    @property
    def embedding_dims(self) -> int | None:
        """Dimensions of an embedding."""
        ...

    @property
    def token_dims(self) -> int | None:
        """Dimensions of a token vector."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the window."""
        ...

    @property
    def room(self) -> int:
        """Tokens of a document that it reads at once, besides special ones and a prompt."""
        ...

    def offsets(self, texts: Sequence[str]) -> list[list[Span]]:
        """The tokens of texts, special ones apart: of each its first character and its end.

        They are an estimate where an endpoint keeps the tokenizer.
        """
        ...

    @property
    def has_places(self) -> bool:
        """Whether a document's last token vectors are those of its text's tokens, one by one."""
        ...

    def encode(
        self, texts: Sequence[str], *, role: Role, embeddings: bool, tokens: bool
    ) -> Encoded:
        """Encode texts of any length; raises ModelError for what the model can't make."""
        ...

    def encode_readable(self, texts: Sequence[str], *, role: Role) -> list[ReadableTokens]:
        """Encode texts to token vectors, those of ``encode``, that say what they stand for.

        Raises ModelError where a model makes no token vectors, or merges them.
        """
        ...

    @property
    def takes_instruction(self) -> bool:
        """Whether queries may be encoded by an instruction."""
        ...

    def steps(
        self,
        role: Role,
        *,
        embeddings: bool,
        tokens: bool,
        readable: bool = False,
        instruction: str | None = None,
    ) -> Steps | Remote:
        """The work that maps a text to its Vectors, or to ReadableTokens: one object for one kind.

        Raises ModelError as ``encode`` and ``encode_readable`` do.
        """
        ...


class ListwiseJudge(Protocol):
    """A language model that orders documents by reading them together."""

    @property
    def takes_instruction(self) -> bool:
        """Whether it reads an instruction beside the query."""
        ...

    def order(self, query: str, documents: Sequence[str]) -> list[float]:
        """Order documents, which come in the order of earlier stages.

        Returns for each how many of the others it is put before.
        """
        ...

    def steps(self, instruction: str | None = None) -> Remote:
        """The work that maps a query and its documents, in one tuple, to their scores."""
        ...


class Reranker(Protocol):
    """A cross-encoder: reads query and document together.

    ``max_tokens`` is the window for both, special tokens included, or None where an endpoint keeps
    it. May be used from several threads.
    """

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the window."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Score (query, document) pairs of any length: raw logits of shape [pairs].

        Higher is better. A long document scores the maximum over its windows; a query longer than
        half the window is cut too, and the mean over its windows counts, so that a document can't
        win by answering one part of a long question.
        """
        ...

    @property
    def takes_instruction(self) -> bool:
        """Whether it reads an instruction beside query and document."""
        ...

    def steps(self, instruction: str | None = None) -> Steps | Remote:
        """The work that maps a pair to its score: one object for one instruction.

        Raises ModelError for an instruction to a model that takes none.
        """
        ...
