"""The ingest loop: claims pending documents, encodes them, stores their vectors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.rows import namedtuple_row

from pgrerank.errors import PgrerankError
from pgrerank.models import Encoder
from pgrerank.models.reduction import Reduction
from pgrerank.tokens import DType, pack_parts
from pgrerank.worker.document import Document
from pgrerank.worker.encoding import Vectors, encode
from pgrerank.worker.lanes import SLICE, Lane
from pgrerank.worker.projections import Projections
from pgrerank.worker.registry import Registry
from pgrerank.worker.session import connect

log = logging.getLogger(__name__)

CLAIM = 64
"""Documents claimed at once: what a killed worker's successor has to do again."""
SESSIONS = 2
"""Sessions that claim side by side: one stores while the other's documents are encoded."""
IDLE = 0.25
"""Seconds between two looks at an empty queue."""


class Ingest:
    """Claims, encodes and stores until told to stop, in a few autocommit sessions."""

    def __init__(
        self,
        dsn: str,
        registry: Registry,
        lane: Lane,
        projections: Projections,
        *,
        only: str | None = None,
        after_claim: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._dsn = dsn
        self._registry = registry
        self._lane = lane
        self._projections = projections
        self._only = only
        self._after_claim = after_claim
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stopping` is set; after a lost connection or a model that can't be loaded
        try again in a moment.
        """
        while not self.stopping.is_set():
            try:
                await self.drain()
                pause = IDLE
            except (psycopg.Error, PgrerankError) as error:
                log.warning("ingest: %s", str(error).strip())
                pause = 2.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), pause)

    async def drain(self) -> None:
        """Work until the queue is empty or `stopping` is set.

        Raises psycopg.OperationalError when the connection is lost: its claims end with it;
        InstallError when the schema is of another version. Raises ModelError or RequestError when
        a model can't be had; the documents are not to blame.
        """
        outcomes = await asyncio.gather(
            *(self._drain() for _ in range(SESSIONS)), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _drain(self) -> None:
        async with await connect(self._dsn, "ingest") as connection:
            try:
                while not self.stopping.is_set() and (documents := await self._claim(connection)):
                    await self._process(connection, documents)
                    if self._after_claim is not None:
                        await self._after_claim()
            except PgrerankError as error:
                await connection.execute("SELECT pgrerank.release(%s)", (str(error),))
                raise

    async def _claim(self, connection: psycopg.AsyncConnection[Any]) -> list[Document]:
        cursor = connection.cursor(row_factory=namedtuple_row)
        await cursor.execute("SELECT * FROM pgrerank.claim(%s, %s)", (CLAIM, self._only))
        return [Document(*row) for row in await cursor.fetchall()]

    async def _process(
        self, connection: psycopg.AsyncConnection[Any], documents: list[Document]
    ) -> None:
        settled = [document for document in documents if document.settled]
        if settled:
            await connection.execute(
                "SELECT pgrerank.settle(%s, %s, %s, %s)",
                (*settled[0][:2], [d.key for d in settled], [d.ticket for d in settled]),
            )
        if unsettled := [document for document in documents if not document.settled]:
            encoders = await self._encoders(unsettled[0])
            reduction = await self._reduction(connection, unsettled[0], encoders)
            await self._encode_and_store(connection, unsettled, encoders, reduction)

    async def _encoders(self, document: Document) -> dict[str, Encoder]:
        names = {
            "embedding": document.embedding_model,
            "late_interaction": document.late_interaction_model,
        }
        return {
            kind: await self._registry.encoder(name, kind)
            for kind, name in names.items()
            if name is not None
        }

    async def _reduction(
        self,
        connection: psycopg.AsyncConnection[Any],
        document: Document,
        encoders: dict[str, Encoder],
    ) -> Reduction:
        if document.token_dims is None:
            return Reduction(document.token_pool)
        matrix = await self._projections.of_generation(
            connection, document, encoders["late_interaction"], self._lane
        )
        return Reduction(document.token_pool, matrix)

    async def _encode_and_store(
        self,
        connection: psycopg.AsyncConnection[Any],
        documents: list[Document],
        encoders: dict[str, Encoder],
        reduction: Reduction,
    ) -> None:
        """All of them, or, where that fails, each alone: the one at fault is put aside."""
        try:
            vectors = await self._encode(documents, encoders, reduction)
            await _store(connection, documents, vectors)
        except psycopg.OperationalError:
            raise
        except Exception as error:
            if len(documents) > 1:
                for document in documents:
                    await self._encode_and_store(connection, [document], encoders, reduction)
            else:
                await _fail(connection, documents[0], error)

    async def _encode(
        self, documents: Sequence[Document], encoders: dict[str, Encoder], reduction: Reduction
    ) -> list[Vectors]:
        """Slice by slice, shortest first, so that a search waits for no more than a slice."""
        vectors: dict[str, Vectors] = {d.key: Vectors(None, None) for d in documents}
        wanted = sorted(
            (d for d in documents if d.content and d.content.strip()),
            key=lambda d: len(d.content or ""),
        )
        for start in range(0, len(wanted), SLICE):
            part = wanted[start : start + SLICE]
            made = await self._encode_slice([d.content for d in part], encoders, reduction)
            vectors.update(zip((d.key for d in part), made, strict=True))
        return [vectors[document.key] for document in documents]

    async def _encode_slice(
        self, texts: Sequence[str | None], encoders: dict[str, Encoder], reduction: Reduction
    ) -> list[Vectors]:
        """One forward pass a checkpoint, whether it makes embeddings, token vectors or both."""
        nothing = [Vectors(None, None)] * len(texts)
        made = {"embedding": nothing, "late_interaction": nothing}
        for encoder in {id(encoder): encoder for encoder in encoders.values()}.values():
            kinds = [kind for kind, other in encoders.items() if other is encoder]
            wants = ("embedding" in kinds, "late_interaction" in kinds)
            run = partial(encode, encoder, "document", *wants, reduction)
            kind = ("document", id(encoder), wants, reduction.kind)
            made |= dict.fromkeys(kinds, await self._lane.submit(kind, texts, run, urgent=False))
        return [
            Vectors(one.embedding, other.tokens)
            for one, other in zip(made["embedding"], made["late_interaction"], strict=True)
        ]


async def _store(
    connection: psycopg.AsyncConnection[Any],
    documents: Sequence[Document],
    vectors: Sequence[Vectors],
) -> None:
    first = documents[0]
    await connection.execute(
        "SELECT pgrerank.store(%s, %s, %s, %s, %s, %s, %s, %b, %s, %b)",
        (
            *documents[0][:2],
            [document.key for document in documents],
            [document.ticket for document in documents],
            [document.content_hash for document in documents],
            [None if v.embedding is None else _vector_text(v.embedding) for v in vectors],
            *_parts(documents, vectors, DType(first.token_precision)),
            *(_parts(documents, vectors, DType.BIT) if first.token_bits else ([], [])),
        ),
    )


def _parts(
    documents: Sequence[Document], vectors: Sequence[Vectors], dtype: DType
) -> tuple[list[str], list[bytes]]:
    """Token vectors packed in parts, and for each part the key of its document."""
    parts = [
        (document.key, part)
        for document, one in zip(documents, vectors, strict=True)
        if one.tokens is not None and len(one.tokens)
        for part in pack_parts(one.tokens, dtype)
    ]
    return [key for key, _ in parts], [part for _, part in parts]


def _vector_text(vector: NDArray[np.float32]) -> str:
    """As pgvector reads it."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


async def _fail(
    connection: psycopg.AsyncConnection[Any], document: Document, error: Exception
) -> None:
    log.warning(
        "reranker %s, key %s: %s: %s", document.reranker, document.key, type(error).__name__, error
    )
    await connection.execute(
        "SELECT pgrerank.fail(%s, %s, %s, %s, %s)",
        (*document[:4], f"{type(error).__name__}: {error}".replace("\0", "")),
    )
