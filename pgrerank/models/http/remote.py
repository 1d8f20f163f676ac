"""Encoders and rerankers that are asked for over HTTP."""

from __future__ import annotations

import functools
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgrerank.errors import EndpointError, ModelError
from pgrerank.models.http import answers
from pgrerank.models.http.dialects import DIALECTS, Dialect
from pgrerank.models.http.endpoint import SECONDS, TRIES
from pgrerank.models.http.model import HttpModel, all_or_none
from pgrerank.models.instructions import no_instruction, with_instruction
from pgrerank.models.options import Options
from pgrerank.models.reduction import of_length_one
from pgrerank.models.spec import Encoded, ModelSpec, ReadableTokens, Role, Span, Vectors
from pgrerank.models.steps import Remote
from pgrerank.models.windows import without_surrogates

Pair = tuple[str, str]

OPTIONS = frozenset({"batch", "instruction_template"})
_OF_KIND: Mapping[str, frozenset[str]] = {
    "cross_encoder": frozenset({"scores"}),
    "embedding": frozenset({"dims", "max_characters", "prompts"}),
    "late_interaction": frozenset({"dims", "max_characters", "prompts"}),
}
MAX_CHARACTERS = 8000
"""Characters of a text that are encoded at once: 8,191 tokens, which is what OpenAI's models take,
in nearly all scripts."""
_ROOM = 2**20
_TOKEN = re.compile(r"[A-Za-z0-9]{1,4}|\S")
"""What is taken for a token of a model whose tokenizer isn't here: rather too little of a text."""
_ECHO = 6
"""How many bytes an answer may have for each of the request: some repeat the texts, escaped."""


class _Batched(HttpModel):
    """A model whose endpoint takes many texts in a request, in one of the dialects."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, OPTIONS | _OF_KIND[spec.kind])
        self._dialect = _dialect(spec, self.options)
        self.template = self.options.template() or self._dialect.template
        self.takes_instruction = self.template is not None
        self._batch = self.options.count("batch") or self._dialect.batch

    def _instruct(self, instruction: str) -> Callable[[str], str]:
        """What writes an instruction into a query."""
        if self.template is None:
            raise no_instruction(self.name)
        return functools.partial(with_instruction, self.template, instruction)

    async def _in_batches(
        self, texts: Sequence[str], deadline: float, **described: Any
    ) -> list[Any]:
        """The values for texts, in their order."""

        async def one(batch: Sequence[str]) -> list[Any]:
            body = self._dialect.body(batch, model=self.model, **described)
            read = functools.partial(answers.decode, shape=self._dialect.answer, count=len(batch))
            sent = sum(len(text.encode(errors="replace")) for text in batch)
            most = _ROOM + _ECHO * sent + len(batch) * self._dialect.bytes_of_text
            return await self.endpoint.ask(body, read, most=most, deadline=deadline)

        begins = range(0, len(texts), self._batch)
        found = await all_or_none([one(texts[b : b + self._batch]) for b in begins])
        return list(itertools.chain.from_iterable(found))


class HttpReranker(_Batched):
    """A cross-encoder behind an endpoint.

    Scores from 0 to 1 become log-odds, so that they spread as a model's logits do.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        scores = self.options.text("scores")
        if scores not in (None, "probability", "raw"):
            raise ModelError(
                f"model {spec.name}: option scores: expected probability or raw, not {scores!r}"
            )
        is_raw = scores == "raw" or (scores is None and not self._dialect.gives_probabilities)
        self._as_logits = answers.finite if is_raw else answers.log_odds

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Score pairs; see :class:`pgrerank.models.Reranker`."""
        return np.array(self.alone(lambda: self.ask(pairs, TRIES * SECONDS)), np.float32)

    def steps(self, instruction: str | None = None) -> Remote:
        """Its work; see :class:`pgrerank.models.Reranker`."""
        return self if instruction is None else _Instructed(self, self._instruct(instruction))

    async def ask(self, items: Sequence[Pair], timeout: float) -> list[float]:
        """Score pairs; see :class:`pgrerank.models.steps.Remote`."""
        deadline = time.monotonic() + timeout
        places: dict[str, list[int]] = {}
        for place, (query, _) in enumerate(items):
            places.setdefault(query, []).append(place)
        found = await all_or_none(
            [
                self._in_batches([items[place][1] for place in own], deadline, query=query)
                for query, own in places.items()
            ]
        )
        scores = [0.0] * len(items)
        for own, values in zip(places.values(), found, strict=True):
            for place, value in zip(own, self._believed(values), strict=True):
                scores[place] = value
        return scores

    def _believed(self, values: Sequence[float]) -> list[float]:
        try:
            return self._as_logits(values)
        except answers.AnswerError as error:
            raise EndpointError(f"{self.endpoint.label}: answered {error}") from None


class _Instructed:
    """The work of scoring pairs by an instruction."""

    def __init__(self, reranker: HttpReranker, rewrite: Callable[[str], str]) -> None:
        self._reranker = reranker
        self._rewrite = rewrite

    async def ask(self, items: Sequence[Pair], timeout: float) -> list[float]:
        """Score pairs; see :class:`pgrerank.models.steps.Remote`."""
        return await self._reranker.ask([(self._rewrite(q), text) for q, text in items], timeout)


class HttpEncoder(_Batched):
    """An embedding or late-interaction model behind an endpoint.

    A text of more than ``max_characters`` is encoded in several pieces, which are joined as those
    of a local model are. Prompts are put before texts; where the endpoint tells queries from
    documents itself, it is told.
    """

    has_places = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self._kind = spec.kind
        self._dims = self.options.count("dims")
        self.prompts: Mapping[str, str] = self.options.prompts() or {}
        self.most = self.options.count("max_characters") or MAX_CHARACTERS

    @property
    def room(self) -> int:
        """Tokens of a text that is sent as a whole; see :class:`pgrerank.models.Encoder`."""
        return max(1, self.most // 5)

    def offsets(self, texts: Sequence[str]) -> list[list[Span]]:
        """What may be the tokens of texts; see :class:`pgrerank.models.Encoder`."""
        return [[found.span() for found in _TOKEN.finditer(text)] for text in texts]

    @functools.cached_property
    def embedding_dims(self) -> int | None:
        """Dimensions of an embedding, found by asking for one."""
        return len(self._probe[0]) if self._kind == "embedding" else None

    @functools.cached_property
    def token_dims(self) -> int | None:
        """Dimensions of a token vector, found by asking for some."""
        return self._probe[0].shape[1] if self._kind == "late_interaction" else None

    def encode(
        self, texts: Sequence[str], *, role: Role, embeddings: bool, tokens: bool
    ) -> Encoded:
        """Encode texts; see :class:`pgrerank.models.Encoder`."""
        steps = self.steps(role, embeddings=embeddings, tokens=tokens)
        found = self.alone(lambda: steps.ask(texts, TRIES * SECONDS)) if texts else []
        if embeddings:
            return Encoded(np.array([one.embedding for one in found], np.float32), None)
        return Encoded(None, [one.tokens for one in found if one.tokens is not None])

    def encode_readable(self, texts: Sequence[str], *, role: Role) -> list[ReadableTokens]:
        """Refuse; see :class:`pgrerank.models.Encoder`."""
        raise self._unreadable()

    def steps(
        self,
        role: Role,
        *,
        embeddings: bool,
        tokens: bool,
        readable: bool = False,
        instruction: str | None = None,
    ) -> Encoding:
        """The work of encoding in a role; see :class:`pgrerank.models.Encoder`."""
        if readable:
            raise self._unreadable()
        if (embeddings, tokens) != (self._kind == "embedding", self._kind != "embedding"):
            raise ModelError(
                f"model {self.name}: as a model of kind {self._kind} it makes no other vectors;"
                " name another model for them"
            )
        if instruction is not None and role == "query":
            return Encoding(self, role, self._instruct(instruction))
        prompt = self.prompts.get(role, "")
        return Encoding(self, role, lambda text: prompt + text)

    def _unreadable(self) -> ModelError:
        return ModelError(
            f"model {self.name}: an endpoint does not say what its token vectors stand for"
        )

    async def vectors(
        self, texts: Sequence[str], role: Role, deadline: float
    ) -> list[NDArray[np.float32]]:
        """Vectors of length 1 for texts that fit: [dims] for each, or [tokens, dims]."""
        found = await self._in_batches(texts, deadline, role=role, dims=self._dims)
        try:
            if self._kind == "embedding":
                return list(answers.unit_vectors(found))
            return [answers.unit_vectors(rows) for rows in found]
        except answers.AnswerError as error:
            raise EndpointError(f"{self.endpoint.label}: answered {error}") from None

    @functools.cached_property
    def _probe(self) -> list[NDArray[np.float32]]:
        deadline = time.monotonic() + SECONDS
        return self.alone(lambda: self.vectors(["probe"], "document", deadline))


class Encoding:
    """The work of encoding texts in one role."""

    def __init__(self, encoder: HttpEncoder, role: Role, written: Callable[[str], str]) -> None:
        self._encoder = encoder
        self._role: Role = role
        self._written = written

    async def ask(self, items: Sequence[str], timeout: float) -> list[Vectors]:
        """Encode texts; see :class:`pgrerank.models.steps.Remote`."""
        deadline = time.monotonic() + timeout
        pieces = [list(_pieces(without_surrogates(text), self._encoder.most)) for text in items]
        texts = [self._written(piece) for own in pieces for piece in own]
        found = iter(await self._encoder.vectors(texts, self._role, deadline))
        return [self._joined(own, list(itertools.islice(found, len(own)))) for own in pieces]

    def _joined(self, pieces: Sequence[str], vectors: Sequence[NDArray[np.float32]]) -> Vectors:
        if vectors[0].ndim > 1:
            return Vectors(None, np.concatenate(vectors))
        weights = [len(piece) or 1 for piece in pieces]
        mean = np.average(np.stack(vectors), axis=0, weights=weights)
        return Vectors(of_length_one(mean.astype(np.float32)), None)


def _pieces(text: str, most: int) -> Iterator[str]:
    """A text in pieces of at most so many characters, cut between words where there are any."""
    while len(text) > most:
        spaces = [found.end() for found in re.finditer(r"\s", text[most // 2 : most])]
        end = most // 2 + spaces[-1] if spaces else most
        yield text[:end]
        text = text[end:]
    yield text


def _dialect(spec: ModelSpec, options: Options) -> Dialect:
    known = DIALECTS[spec.kind]
    name = options.text("dialect")
    if name is None or name not in known:
        raise ModelError(
            f"model {spec.name}: option dialect is {name!r}, expected one of {', '.join(known)},"
            f" which an endpoint for models of kind {spec.kind} may speak"
        )
    return known[name]
