"""What the endpoint does with models: the engine that answers Postgres, and its cache."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgrerank.errors import RequestError
from pgrerank.models import Kind, ModelSpec, Role
from pgrerank.models.steps import Remote
from pgrerank.worker.engine import Engine
from pgrerank.worker.models import Models
from pgrerank.worker.scoring import Scorer

SERVED: tuple[Kind, ...] = ("embedding", "cross_encoder")


@contextlib.asynccontextmanager
async def _within(timeout: float) -> AsyncIterator[None]:
    """Bound loading and tokenising too, which the engine's deadline does not interrupt."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise RequestError(
            "the deadline passed before the work was done", sqlstate="PGR02"
        ) from None


class Embedded(NamedTuple):
    """Embeddings of shape [texts, dims], the model's name, and the tokens that it read; none are
    counted for a model that is elsewhere.
    """

    vectors: NDArray[np.float32]
    model: str
    tokens: int


class Service:
    """Scores and embeds by the worker's models."""

    def __init__(self, models: Models, engine: Engine, scorer: Scorer) -> None:
        self._models = models
        self._engine = engine
        self._scorer = scorer

    async def list_models(self) -> list[ModelSpec]:
        """The models that can be asked for."""
        return [spec for spec in await self._models.specs() if spec.kind in SERVED]

    async def score(
        self, model: str | None, query: str, texts: Sequence[str], timeout: float
    ) -> tuple[str, list[float]]:
        """The model's name, and raw scores of texts in their order; `timeout` is in seconds.

        Raises RequestError as the engine does, ModelError for what can't be scored.
        """
        async with _within(timeout):
            name = await self._name(model, "cross_encoder")
            return name, await self._scorer.score(name, query, texts, timeout)

    async def embed(
        self, model: str | None, texts: Sequence[str], role: Role, timeout: float
    ) -> Embedded:
        """Embeddings of texts; raises as `score` does.

        One text is as urgent as a search's; many are documents, which wait behind searches.
        """
        async with _within(timeout):
            name = await self._name(model, "embedding")
            encoder = await self._models.encoder(name, "embedding")
            steps = encoder.steps(role, embeddings=True, tokens=False)
            lane = "encode" if len(texts) == 1 else "ingest"
            found = await self._engine.submit(lane, steps, texts, timeout=timeout)
            tokens = 0
            if not isinstance(steps, Remote):
                prepared = await asyncio.to_thread(steps.prepare, texts)
                tokens = sum(one.tokens for item in prepared for one in item.inputs)
        return Embedded(np.stack([one.embedding for one in found]), name, tokens)

    async def _name(self, model: str | None, kind: Kind) -> str:
        """The model that is meant; where none is named, the only one of the kind."""
        if model is not None:
            return model
        names = [spec.name for spec in await self._models.specs() if spec.kind == kind]
        if len(names) != 1:
            raise RequestError(
                f'{len(names)} models of kind {kind} are registered: name one in "model"',
                sqlstate="22023" if names else "42704",
            )
        return names[0]
