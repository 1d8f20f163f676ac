"""Which models there are: written to the database, read from it, loaded when first used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgrerank.errors import ModelError, RequestError
from pgrerank.models import (
    Encoder,
    Kind,
    Loader,
    ModelSpec,
    ModelStore,
    Reranker,
    load_encoder,
    load_reranker,
)

TTL = 5.0
"""Seconds for which the list of models is taken as current."""


class Registry:
    """Models by their registered name. Loading happens in a thread, once for each checkpoint."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._store = ModelStore()
        self._specs: dict[str, ModelSpec] = {}
        self._read_at = float("-inf")
        self._loading = asyncio.Lock()

    async def spec(self, name: str, kind: str) -> ModelSpec:
        """The model registered as `name`. Raises RequestError when there is none of that kind."""
        if name not in self._specs or time.monotonic() - self._read_at > TTL:
            self._specs = {spec.name: spec for spec in await read_specs(self._dsn)}
            self._read_at = time.monotonic()
        spec = self._specs.get(name)
        if spec is None or spec.kind != kind:
            raise RequestError(f'no model "{name}" of kind {kind} is registered', sqlstate="42704")
        return spec

    async def encoder(self, name: str, kind: str) -> Encoder:
        """The loaded embedding or late-interaction model of that name."""
        spec = await self.spec(name, kind)
        async with self._loading:
            return await asyncio.to_thread(self._store.encoder, spec)

    async def reranker(self, name: str) -> Reranker:
        """The loaded cross-encoder of that name."""
        spec = await self.spec(name, "cross_encoder")
        async with self._loading:
            return await asyncio.to_thread(self._store.reranker, spec)

    async def preload(self) -> list[ModelSpec]:
        """Load every registered model; returns them."""
        specs = await read_specs(self._dsn)
        for spec in specs:
            if spec.kind == "cross_encoder":
                await self.reranker(spec.name)
            else:
                await self.encoder(spec.name, spec.kind)
        return specs


async def read_specs(dsn: str) -> list[ModelSpec]:
    """All registered models, in order of their names."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = connection.cursor(row_factory=dict_row)
        await cursor.execute("SELECT * FROM pgrerank.models ORDER BY name")
        return [_spec(row) for row in await cursor.fetchall()]


def _spec(row: dict[str, Any]) -> ModelSpec:
    fields = ("name", "kind", "loader", "source", "revision", "options")
    return ModelSpec(**{field: row[field] for field in fields})


_LOADERS: dict[str, Loader] = {
    "embedding": "sentence_transformer",
    "late_interaction": "multi_vector_encoder",
    "cross_encoder": "cross_encoder",
}


def model_spec(
    name: str,
    kind: Kind,
    source: str,
    *,
    loader: Loader | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """A model as it would be registered; raises ModelError for an unknown kind."""
    if kind not in _LOADERS:
        raise ModelError(f"model {name}: kind is {kind!r}, wanted one of {', '.join(_LOADERS)}")
    return ModelSpec(name, kind, loader or _LOADERS[kind], source, revision, options or {})


def register_model(
    connection: psycopg.Connection[Any],
    name: str,
    kind: Kind,
    source: str,
    *,
    loader: Loader | None = None,
    revision: str | None = None,
    options: Mapping[str, Any] | None = None,
    measures: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Load a model once, to see that it can be and to learn its dimensions, and register it.

    Raises ModelError when it can't be loaded, psycopg.Error when it can't be registered.
    """
    spec = model_spec(name, kind, source, loader=loader, revision=revision, options=options)
    dims = None
    if kind == "cross_encoder":
        max_tokens = load_reranker(spec).max_tokens
    else:
        encoder = load_encoder(spec)
        max_tokens = encoder.max_tokens
        dims = encoder.embedding_dims if kind == "embedding" else encoder.token_dims
    connection.execute(
        "SELECT pgrerank.register_model(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            *(name, kind, source, dims, spec.loader, revision, max_tokens),
            Jsonb(dict(spec.options)),
            Jsonb(dict(measures or {})),
        ),
    )
    return spec
