"""The registered models, loaded when they are first used."""

from __future__ import annotations

import asyncio
import time

from psycopg.rows import class_row

from pgrerank.catalog import MODELS
from pgrerank.errors import RequestError
from pgrerank.models import Encoder, ListwiseJudge, ModelSpec, ModelStore, Reranker
from pgrerank.models.http.model import HttpModel
from pgrerank.models.spec import Precision
from pgrerank.models.store import Loaded, Weights
from pgrerank.worker.session import open_session

TTL = 5.0
"""Seconds for which the list of models is taken as current."""


class Models:
    """Models by their registered name. Loading happens in a thread, once for each checkpoint."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._store = ModelStore()
        self._specs: dict[str, ModelSpec] = {}
        self._read_at = float("-inf")
        self._loading = asyncio.Lock()
        self._loaded: dict[str, Loaded] = {}

    @property
    def loaded(self) -> list[str]:
        """Names of the models that have been loaded."""
        return sorted(self._loaded)

    @property
    def precisions(self) -> dict[str, Precision]:
        """What the weights of loaded models are kept in; of those that are in memory here."""
        kept = {name: getattr(model, "precision", None) for name, model in self._loaded.items()}
        return {name: precision for name, precision in kept.items() if precision is not None}

    @property
    def remote(self) -> list[HttpModel]:
        """The models behind endpoints that have been asked for."""
        return self._store.remote()

    @property
    def weights(self) -> list[Weights]:
        """What the models in memory take there."""
        return self._store.weights()

    async def spec(self, name: str, kind: str) -> ModelSpec:
        """The model registered as `name`. Raises RequestError when there is none of that kind."""
        if name not in self._specs or time.monotonic() - self._read_at > TTL:
            await self._read()
        spec = self._specs.get(name)
        if spec is None or spec.kind != kind:
            raise RequestError(f'no model "{name}" of kind {kind} is registered', sqlstate="42704")
        return spec

    async def specs(self) -> list[ModelSpec]:
        """The registered models, in order of their names."""
        if time.monotonic() - self._read_at > TTL:
            await self._read()
        return list(self._specs.values())

    async def encoder(self, name: str, kind: str) -> Encoder:
        """The loaded embedding or late-interaction model of that name."""
        spec = await self.spec(name, kind)
        async with self._loading:
            encoder = await asyncio.to_thread(self._store.encoder, spec)
        self._loaded[name] = encoder
        return encoder

    async def reranker(self, name: str) -> Reranker:
        """The loaded cross-encoder of that name."""
        spec = await self.spec(name, "cross_encoder")
        async with self._loading:
            reranker = await asyncio.to_thread(self._store.reranker, spec)
        self._loaded[name] = reranker
        return reranker

    async def judge(self, name: str) -> ListwiseJudge:
        """The language model of that name."""
        spec = await self.spec(name, "listwise")
        judge = await asyncio.to_thread(self._store.judge, spec)
        self._loaded[name] = judge
        return judge

    async def _read(self) -> None:
        self._specs = {spec.name: spec for spec in await read_specs(self._dsn)}
        self._read_at = time.monotonic()

    async def preload(self) -> list[ModelSpec]:
        """Load every registered model; returns them."""
        specs = await read_specs(self._dsn)
        for spec in specs:
            if spec.kind == "cross_encoder":
                await self.reranker(spec.name)
            elif spec.kind == "listwise":
                await self.judge(spec.name)
            else:
                await self.encoder(spec.name, spec.kind)
        return specs


async def read_specs(dsn: str) -> list[ModelSpec]:
    """All registered models, in order of their names."""
    async with await open_session(dsn, "models") as connection:
        cursor = connection.cursor(row_factory=class_row(ModelSpec))
        await cursor.execute(MODELS)
        return await cursor.fetchall()
