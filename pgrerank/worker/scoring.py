"""Answers Postgres's requests at search time; all that is scored comes with the request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pgrerank import __version__
from pgrerank.errors import PgrerankError, RequestError
from pgrerank.models.reduction import Reduction
from pgrerank.models.spec import Vectors
from pgrerank.models.steps import Whole
from pgrerank.tokens import DType, maxsim, pack
from pgrerank.wire.types import Rows, Session
from pgrerank.worker import memory
from pgrerank.worker.aligning import align
from pgrerank.worker.cache import Cache
from pgrerank.worker.encoding import encode_texts
from pgrerank.worker.engine import Engine
from pgrerank.worker.highlighting import highlight
from pgrerank.worker.models import Models, read_specs
from pgrerank.worker.observing.observer import Observers
from pgrerank.worker.projections import Projections
from pgrerank.worker.requests import (
    Align,
    CrossEncode,
    Encode,
    Envelope,
    Highlight,
    Listwise,
    MaxSim,
    parse,
    unhex,
)

_MAXSIM = Whole(
    lambda items: [maxsim(query, documents) for query, documents in items],
    size=lambda item: len(item[1]),
)


class Scorer:
    """Answers requests: JSON objects, and a few words for people with psql.

    What it has computed it keeps in up to `cache` bytes, half for scores and half for the vectors
    of queries. `asked` counts the requests that somebody waits for.
    """

    def __init__(
        self,
        dsn: str,
        models: Models,
        engine: Engine,
        projections: Projections,
        cache: int,
        observers: Observers,
    ) -> None:
        self._dsn = dsn
        self._models = models
        self._engine = engine
        self._projections = projections
        self._scores = Cache(cache // 2, lambda found: 8 * np.size(found))
        self._queries = Cache(cache // 2, _size)
        self._observers = observers
        self.asked = 0

    async def __call__(self, statement: str, _session: Session) -> Rows:
        """Answer one statement. Raises RequestError for what can't be answered."""
        words = statement.strip().removesuffix(";").strip()
        if words.startswith("{"):
            try:
                return await self._answer_observed(parse(words))
            finally:
                if len(words) > memory.LARGE:
                    await memory.give_back()
        match words.lower().split():
            case ["ping"]:
                return _row("answer", '{"pong": true}')
            case ["show", "version"]:
                return _row("version", __version__)
            case ["show", "models"]:
                return await self._registered()
            case ["show", "status"]:
                return self._status()
            case ["show", "endpoints"]:
                return self._endpoints()
        raise RequestError(
            "not a request: expected a JSON object, PING or SHOW models, endpoints, status or"
            " version",
            sqlstate="42601",
        )

    @property
    def caches(self) -> dict[str, Cache]:
        """What is kept, by the lane of what computes it."""
        return {"encode": self._queries, "cross_encode": self._scores}

    async def _registered(self) -> Rows:
        """The registered models; those in memory here have a precision."""
        kept = self._models.precisions
        rows = [
            (*(spec.name, spec.kind, spec.loader, spec.source), *kept.get(spec.name, ("", "")))
            for spec in await read_specs(self._dsn)
        ]
        columns = ("name", "kind", "loader", "source", "precision", "why")
        return Rows(columns, list(rows), "SHOW")

    def _status(self) -> Rows:
        rows = [
            (
                *(name, str(lane.done), str(self._engine.waiting(name))),
                *((str(kept.hits), f"{1000 * kept.saved:.0f}") if kept else ("0", "0")),
            )
            for name, lane in self._engine.lanes.items()
            for kept in [self.caches.get(name)]
        ]
        return Rows(("lane", "requests", "waiting", "cache_hits", "saved_ms"), list(rows), "SHOW")

    def _endpoints(self) -> Rows:
        """What each model elsewhere was asked; tokens and cost are empty where nobody knows."""
        rows = [
            (model.name, *("" if value is None else f"{value:.10g}" for value in model.usage))
            for model in self._models.remote
        ]
        columns = ("model", "requests", "failed", "tokens_read", "tokens_written", "cost")
        return Rows(columns, list(rows), "SHOW")

    async def _answer_observed(self, envelope: Envelope) -> Rows:
        self.asked += not envelope.background
        with self._observers.request(envelope):
            return await self._answer(envelope)

    async def _answer(self, envelope: Envelope) -> Rows:
        timeout = envelope.timeout_ms / 1000
        in_place_of = {"lane": "ingest"} if envelope.background else {}
        memory.check(envelope.request)
        try:
            match envelope.request:
                case Encode() as request:
                    answer = await self._encode(request, timeout, **in_place_of)
                case MaxSim() as request:
                    answer = await self._maxsim(request, timeout, **in_place_of)
                case Listwise() as request:
                    answer = {"scores": await self._order(request, timeout, **in_place_of)}
                case CrossEncode() as request:
                    scores = await self.score(
                        request.model,
                        request.query,
                        request.readings,
                        timeout,
                        instruction=request.instruction,
                        **in_place_of,
                    )
                    answer = {"scores": scores}
                case Align() as request:
                    encoder = await self._models.encoder(request.model, "late_interaction")
                    answer = await align(
                        encoder, request.query, request.documents, self._engine, timeout
                    )
                case Highlight() as request:
                    encoder = await self._models.encoder(request.model, "late_interaction")
                    answer = {"highlights": await highlight(encoder, request)}
        except RequestError:
            raise
        except PgrerankError as error:
            raise RequestError(str(error), sqlstate="22023") from error
        return _row("answer", json.dumps({"id": envelope.id, **answer}, allow_nan=False))

    async def _encode(
        self, request: Encode, timeout: float, lane: str = "encode"
    ) -> dict[str, Any]:
        names = {
            "embedding": request.embedding,
            "late_interaction": request.late_interaction,
        }
        encoders = {
            kind: await self._models.encoder(name, kind)
            for kind, name in names.items()
            if name is not None
        }
        reduction = Reduction()
        if request.projection is not None:
            reduction = Reduction(matrix=await self._projections.get(request.projection))
        encoded = await self._queries.get(
            (
                *((kind, id(encoder)) for kind, encoder in encoders.items()),
                *(request.projection, request.instruction),
            ),
            [(text,) for text in request.texts],
            lambda texts: encode_texts(
                self._engine,
                lane if len(texts) == 1 else "ingest",
                encoders,
                "query",
                [text for (text,) in texts],
                reduction,
                instruction=request.instruction,
                timeout=timeout,
            ),
        )
        return {"queries": [_written(vectors) for vectors in encoded]}

    async def _order(
        self, request: Listwise, timeout: float, lane: str = "cross_encode"
    ) -> list[float]:
        judge = await self._models.judge(request.model)
        steps = judge.steps(request.instruction)
        [scores] = await self._scores.get(
            (id(judge), request.instruction),
            [(request.query, *request.readings)],
            lambda items: self._engine.submit(lane, steps, items, timeout=timeout),
        )
        return list(scores)

    async def _maxsim(
        self, request: MaxSim, timeout: float, lane: str = "maxsim"
    ) -> dict[str, Any]:
        query = unhex(request.query)
        documents = [unhex(text) for text in request.documents]
        [scores] = await self._engine.submit(lane, _MAXSIM, [(query, documents)], timeout=timeout)
        return {"scores": scores.tolist()}

    async def score(
        self,
        model: str,
        query: str,
        documents: Sequence[str],
        timeout: float,
        *,
        instruction: str | None = None,
        lane: str = "cross_encode",
    ) -> list[float]:
        """Documents' raw scores by a cross-encoder, which is given the instruction if it takes one;
        `timeout` is in seconds.

        Raises RequestError as the engine does, ModelError for what can't be scored.
        """
        reranker = await self._models.reranker(model)
        steps = reranker.steps(instruction if reranker.takes_instruction else None)
        return await self._scores.get(
            (id(reranker), instruction),
            [(query, document) for document in documents],
            lambda pairs: self._engine.submit(lane, steps, pairs, timeout=timeout),
        )


def _size(vectors: Vectors) -> int:
    return sum(part.nbytes for part in vectors if part is not None)


def _written(vectors: Vectors) -> dict[str, Any]:
    written: dict[str, Any] = {}
    if vectors.embedding is not None:
        written["embedding"] = vectors.embedding.tolist()
    if vectors.tokens is not None and len(vectors.tokens):
        written["tokens"] = pack(vectors.tokens, DType.FLOAT16).hex()
    return written


def _row(column: str, value: str) -> Rows:
    return Rows((column,), [(value,)], "SELECT 1")
