"""The endpoint's paths, and what they answer."""

from __future__ import annotations

import base64
import logging
import math
import uuid
from collections.abc import Sequence
from typing import Annotated

import psycopg
from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pgrerank import __version__
from pgrerank.errors import PgrerankError, RequestError
from pgrerank.worker.http import shapes
from pgrerank.worker.http.service import Service

log = logging.getLogger(__name__)

DEADLINE_MS = 60_000
"""Milliseconds that a request may take, as over the wire; it may ask for less."""
RETRY_AFTER = {"Retry-After": "1"}
_STATUSES = {"53300": 503, "57P01": 503, "PGR02": 504, "42704": 404, "22023": 422}

Timeout = Annotated[float, Header(alias="X-Timeout-Ms", gt=0, le=DEADLINE_MS, allow_inf_nan=False)]


class Api:
    """Answers each path by the service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self) -> dict[str, str]:
        """Whether the worker is up."""
        return {"status": "ok"}

    async def models(self) -> shapes.ModelList:
        """The registered embedding models and cross-encoders."""
        specs = await self._service.list_models()
        return shapes.ModelList(data=[shapes.Model(id=one.name, kind=one.kind) for one in specs])

    async def tei_rerank(
        self, request: shapes.TeiRerank, timeout_ms: Timeout = DEADLINE_MS
    ) -> list[shapes.TeiRank]:
        """Score texts by a cross-encoder, as Text Embeddings Inference does."""
        _, scores = await self._service.score(
            request.model, request.query, request.texts, timeout_ms / 1000
        )
        return [
            shapes.TeiRank(
                index=index,
                score=scores[index] if request.raw_scores else _sigmoid(scores[index]),
                text=request.texts[index] if request.return_text else None,
            )
            for index in _order(scores)
        ]

    async def rerank(
        self, request: shapes.Rerank, timeout_ms: Timeout = DEADLINE_MS
    ) -> shapes.Reranked:
        """Score documents by a cross-encoder, as Cohere and Jina do."""
        texts = request.texts
        model, scores = await self._service.score(
            request.model, request.query, texts, timeout_ms / 1000
        )
        return shapes.Reranked(
            id=str(uuid.uuid4()),
            model=model,
            results=[
                shapes.Result(
                    index=index,
                    relevance_score=_sigmoid(scores[index]),
                    document=shapes.TextObject(text=texts[index])
                    if request.return_documents
                    else None,
                )
                for index in _order(scores)[: request.top_n]
            ],
            meta={"api_version": {"version": "2"}},
        )

    async def embed(
        self, request: shapes.Embed, timeout_ms: Timeout = DEADLINE_MS
    ) -> list[list[float]]:
        """Embed texts, as Text Embeddings Inference does."""
        found = await self._service.embed(
            request.model, _texts(request.inputs), request.prompt_name, timeout_ms / 1000
        )
        return [[float(number) for number in row] for row in found.vectors]

    async def embeddings(
        self, request: shapes.EmbeddingsRequest, timeout_ms: Timeout = DEADLINE_MS
    ) -> shapes.Embeddings:
        """Embed texts, as OpenAI does; token numbers are not taken, as each model has its own."""
        found = await self._service.embed(
            request.model, _texts(request.input), request.input_type, timeout_ms / 1000
        )
        dims = found.vectors.shape[1]
        if request.dimensions not in (None, dims):
            raise RequestError(
                f"model {found.model} makes {dims} dimensions, not {request.dimensions}:"
                ' leave "dimensions" out',
                sqlstate="22023",
            )
        rows = found.vectors.astype("<f4")
        return shapes.Embeddings(
            data=[
                shapes.Embedding(
                    index=index,
                    embedding=row.tolist()
                    if request.encoding_format == "float"
                    else base64.b64encode(row.tobytes()).decode("ascii"),
                )
                for index, row in enumerate(rows)
            ],
            model=found.model,
            usage=shapes.Usage(prompt_tokens=found.tokens, total_tokens=found.tokens),
        )


def make_app(service: Service) -> FastAPI:
    """The application; who may ask, and how much at once, is the gatekeeper's to say."""
    api = Api(service)
    app = FastAPI(
        title="pgrerank",
        version=__version__,
        description="The models of a pgrerank worker, for clients of TEI, Cohere, Jina, OpenAI.",
    )
    app.add_api_route("/health", api.health, methods=["GET"])
    app.add_api_route("/v1/models", api.models, methods=["GET"])
    sparse = {"methods": ["POST"], "response_model_exclude_none": True}
    app.add_api_route("/rerank", api.tei_rerank, **sparse)  # type: ignore[arg-type]
    for path in ("/v2/rerank", "/v1/rerank"):
        app.add_api_route(path, api.rerank, **sparse)  # type: ignore[arg-type]
    app.add_api_route("/embed", api.embed, methods=["POST"])
    app.add_api_route("/v1/embeddings", api.embeddings, methods=["POST"])
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(PgrerankError, _refused)
    app.add_exception_handler(psycopg.Error, _no_database)
    app.add_exception_handler(Exception, _broken)
    return app


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error, in a shape that OpenAI's and Cohere's clients both read."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"message": message, "error": {"message": message, "type": kind, "code": status}}
    return JSONResponse(body, status, headers)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong and where, without what was sent, which may be anything."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return problem(422, f"the request is malformed: {place[:200]}: {first['msg'][:500]}")


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), dict(error.headers or {}))


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    status = 500
    if isinstance(error, RequestError):
        status = _STATUSES.get(error.sqlstate, 500)
    if status == 500:
        log.error("%s: %s", type(error).__name__, error)
        return problem(500, "the model can't answer this; the worker's log says why")
    return problem(status, str(error), RETRY_AFTER if status in (503, 504) else None)


async def _no_database(_request: Request, error: Exception) -> JSONResponse:
    log.warning("%s: %s", type(error).__name__, error)
    return problem(503, "the worker can't reach its database, which has the models", RETRY_AFTER)


async def _broken(_request: Request, _error: Exception) -> JSONResponse:
    return problem(500, "the worker failed at this; its log says where")


def _order(scores: Sequence[float]) -> list[int]:
    """Places by score, the best first; by the raw one, as those from 0 to 1 may tie."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
