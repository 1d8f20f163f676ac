"""The questions that Postgres asks at search time; what is scored comes with the request."""

from __future__ import annotations

import binascii
import json
import math
from functools import partial
from typing import Any

from pgrerank import __version__
from pgrerank.errors import PgrerankError, RequestError
from pgrerank.models import Encoder
from pgrerank.models.reduction import Reduction
from pgrerank.tokens import DType, maxsim, pack
from pgrerank.wire.types import Rows, Session
from pgrerank.worker.aligning import align
from pgrerank.worker.encoding import encode
from pgrerank.worker.lanes import Lane
from pgrerank.worker.projections import Projections
from pgrerank.worker.registry import Registry, read_specs

EVALUATIONS = 4
"""So many may wait: each takes seconds."""


class Scorer:
    """Answers requests: JSON objects with a `call`, and a few words for people with psql."""

    def __init__(
        self,
        dsn: str,
        registry: Registry,
        encode_lane: Lane,
        projections: Projections,
        *,
        capacity: int = 64,
    ) -> None:
        self._dsn = dsn
        self._registry = registry
        self._projections = projections
        self.lanes = (
            encode_lane,
            Lane("maxsim", capacity=capacity),
            Lane("cross_encode", capacity=capacity),
            Lane("evaluate", capacity=EVALUATIONS),
        )

    async def __call__(self, statement: str, _session: Session) -> Rows:
        """Answer one statement. Raises RequestError for what can't be answered."""
        words = statement.strip().removesuffix(";").strip()
        if words.startswith("{"):
            return await self._answer(_parse(words))
        match words.lower().split():
            case ["ping"]:
                return _row("answer", '{"pong": true}')
            case ["show", "version"]:
                return _row("version", __version__)
            case ["show", "models"]:
                return await self._models()
            case ["show", "status"]:
                rows = [(lane.name, str(lane.done), str(lane.waiting)) for lane in self.lanes]
                return Rows(("lane", "requests", "waiting"), list(rows), "SHOW")
        raise RequestError(
            "not a request: wanted is a JSON object, PING or SHOW models, status or version",
            sqlstate="42601",
        )

    def close(self) -> None:
        """End the lanes."""
        for lane in self.lanes:
            lane.close()

    async def _models(self) -> Rows:
        specs = await read_specs(self._dsn)
        rows = [(spec.name, spec.kind, spec.loader, spec.source) for spec in specs]
        return Rows(("name", "kind", "loader", "source"), list(rows), "SHOW")

    async def _answer(self, envelope: dict[str, Any]) -> Rows:
        request = envelope.get("request")
        if not isinstance(request, dict):
            raise RequestError('"request" is not an object', sqlstate="22023")
        calls = {
            "encode": self._encode,
            "maxsim": self._maxsim,
            "cross_encode": self._cross_encode,
            "evaluate": self._evaluate,
            "align": self._align,
        }
        call = calls.get(_text(request, "call"))
        if call is None:
            raise RequestError(
                f'"call" is {request["call"]!r}: {", ".join(calls)} wanted', sqlstate="42883"
            )
        timeout = envelope.get("timeout_ms", 60_000)
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise RequestError(
                f'"timeout_ms" is {timeout!r}: milliseconds wanted', sqlstate="22023"
            )
        try:
            answer = await call(request, timeout / 1000)
        except RequestError:
            raise
        except PgrerankError as error:
            raise RequestError(str(error), sqlstate="22023") from error
        return _row("answer", json.dumps({"id": envelope.get("id"), **answer}, allow_nan=False))

    async def _encode(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        text = _text(request, "text")
        answer: dict[str, Any] = {}
        wanted: dict[int, tuple[Encoder, set[str]]] = {}
        for kind in ("embedding", "late_interaction"):
            if request.get(kind) is not None:
                encoder = await self._registry.encoder(_text(request, kind), kind)
                wanted.setdefault(id(encoder), (encoder, set()))[1].add(kind)
        reduction = Reduction()
        if request.get("projection") is not None:
            reduction = Reduction(matrix=await self._projections.get(_text(request, "projection")))
        for encoder, kinds in wanted.values():
            embeddings, tokens = "embedding" in kinds, "late_interaction" in kinds
            [vectors] = await self.lanes[0].submit(
                ("query", id(encoder), embeddings, tokens, reduction.kind),
                [text],
                partial(encode, encoder, "query", embeddings, tokens, reduction),
                timeout=timeout,
            )
            if embeddings:
                answer["embedding"] = vectors.embedding.tolist()
            if tokens and len(vectors.tokens):
                answer["tokens"] = pack(vectors.tokens, DType.FLOAT16).hex()
        return answer

    async def _maxsim(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            query = binascii.unhexlify(_text(request, "query"))
            documents = [binascii.unhexlify(text) for text in _texts(request, "documents")]
        except (binascii.Error, ValueError) as error:
            raise RequestError(
                f"token vectors are not hexadecimal: {error}", sqlstate="22023"
            ) from error
        [scores] = await self.lanes[1].submit(
            "maxsim",
            [(query, documents)],
            lambda items: [maxsim(query, documents) for query, documents in items],
            timeout=timeout,
        )
        return {"scores": scores.tolist()}

    async def _cross_encode(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        query, documents = _text(request, "query"), _texts(request, "documents")
        reranker = await self._registry.reranker(_text(request, "model"))
        scores = await self.lanes[2].submit(
            id(reranker),
            [(query, document) for document in documents],
            lambda pairs: reranker.score(pairs).tolist(),
            size=lambda pair: len(pair[1]),
            timeout=timeout,
        )
        return {"scores": scores}

    async def _align(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        query, documents = _text(request, "query"), _texts(request, "documents")
        encoder = await self._registry.encoder(_text(request, "model"), "late_interaction")
        return await align(encoder, query, documents, self.lanes[0], self.lanes[1], timeout)

    async def _evaluate(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        from pgrerank.worker.measuring import measure  # SciPy, which searches do without

        [answer] = await self.lanes[3].submit(
            "evaluate", [request], lambda items: [measure(item) for item in items], timeout=timeout
        )
        return dict(answer)


def _row(column: str, value: str) -> Rows:
    return Rows((column,), [(value,)], "SELECT 1")


def _parse(statement: str) -> dict[str, Any]:
    try:
        request = json.loads(statement)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is not JSON: {error}", sqlstate="22023") from error
    if not isinstance(request, dict):  # pragma: no cover - starts with "{"
        raise RequestError("the request is not a JSON object", sqlstate="22023")
    return request


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise RequestError(
            f'"{name}" is {type(value).__name__}: a string is wanted', sqlstate="22023"
        )
    return value


def _texts(request: dict[str, Any], name: str) -> list[str]:
    value = request.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f'"{name}" is not a list of strings', sqlstate="22023")
    return value
