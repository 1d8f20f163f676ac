"""The ingest loop: claims pending documents, encodes them, stores their vectors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import psycopg
from psycopg.rows import class_row
from psycopg.types.numeric import Int4

from pgrerank.errors import EndpointError, PgrerankError
from pgrerank.models import Encoder
from pgrerank.models.reduction import Reduction
from pgrerank.models.spec import Vectors
from pgrerank.tokens import DType, pack_parts
from pgrerank.worker.arrays import Reals, RealsDumper
from pgrerank.worker.claim import Claim, Document
from pgrerank.worker.cutting import Passage, Work, cut_documents, portions
from pgrerank.worker.encoding import encode_texts
from pgrerank.worker.engine import Engine
from pgrerank.worker.models import Models
from pgrerank.worker.projections import Projections
from pgrerank.worker.session import check_schema, connect

log = logging.getLogger(__name__)

CLAIM, LARGEST_CLAIM = 64, 256
"""Documents claimed at once, what a killed worker's successor has to do again: while nothing is
known of the speed, and at most."""
CLAIM_SECONDS = 0.5
"""Seconds for which the documents of a claim should be encoded."""
PORTION, SMALLEST_PORTION, LARGEST_PORTION = 2**15, 2**14, 2**18
"""Characters of the passages that are encoded and stored at a time: while nothing is known of the
speed, at least, and at most, which bounds the memory for their token vectors."""
PORTION_SECONDS = 2.0
"""Seconds for which they should be encoded: what of a long document holds up others, and what a
killed worker's successor has to do again."""
LOCKED_TRIES = 10
"""How often storing is tried, half a second each, while somebody holds a lock in its way."""
SESSIONS = max(2, min(4, (os.cpu_count() or 1) // 2))
"""Sessions that claim side by side, at most: while some store, the documents of another are
encoded."""
IDLE = 0.25
"""Seconds between two looks at an empty queue."""


class Ingest:
    """Claims, encodes and stores until told to stop, in an autocommit session.

    Where the model waits for documents while it stores, others help until the queue is empty.
    """

    def __init__(
        self,
        dsn: str,
        models: Models,
        engine: Engine,
        projections: Projections,
        *,
        only: str | None = None,
        after_claim: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._dsn = dsn
        self._models = models
        self._engine = engine
        self._projections = projections
        self._only = only
        self._after_claim = after_claim
        self._claim_size = CLAIM
        self._portion = PORTION
        self._helpers: list[asyncio.Task[None]] = []
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until `stopping` is set; after a lost connection or a model that can't be loaded
        try again in a moment.
        """
        while not self.stopping.is_set():
            try:
                async with self._session() as connection:
                    while not self.stopping.is_set():
                        await self._work(connection)
                        await self._pause(IDLE)
            except (psycopg.Error, PgrerankError) as error:
                log.warning("ingest: %s", str(error).strip())
                await self._pause(2.0)

    async def drain(self) -> None:
        """Work until the queue is empty or `stopping` is set.

        Raises psycopg.OperationalError when the connection is lost: its claims end with it;
        InstallError when the schema is of another version. Raises ModelError or RequestError when
        a model can't be had; the documents are not to blame.
        """
        async with self._session() as connection:
            await self._work(connection)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with await connect(self._dsn, "ingest") as connection:
            connection.adapters.register_dumper(Reals, RealsDumper)
            yield connection

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    async def _work(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Empty the queue in this session, and in others beside it that are started on the way."""
        errors: list[BaseException | None] = []
        errors += await asyncio.gather(self._empty(connection), return_exceptions=True)
        while self._helpers:
            errors += await asyncio.gather(*self._helpers, return_exceptions=True)
            self._helpers = [task for task in self._helpers if not task.done()]
        for error in errors:
            if error is not None:
                raise error

    async def _help(self) -> None:
        async with self._session() as connection:
            await self._empty(connection)

    async def _empty(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Work until nothing can be claimed. A reranker that can't be worked at is set aside, and
        the others go on; if it is the only one, that is an error.
        """
        while not self.stopping.is_set() and (claim := await self._claim(connection)):
            try:
                await self._process(connection, claim)
            except (PgrerankError, psycopg.Error) as error:
                if connection.broken:
                    raise
                await connection.execute("SELECT pgrerank.release(%s)", (str(error),))
                if self._only is not None:
                    raise
                log.warning("reranker %s: %s", claim.reranker, str(error).strip())
            if self._after_claim is not None:
                await self._after_claim()

    async def _claim(self, connection: psycopg.AsyncConnection[Any]) -> Claim | None:
        """Claim documents, if there are any and the schema has not been upgraded meanwhile."""
        await check_schema(connection)
        cursor = connection.cursor(row_factory=class_row(Claim))
        await cursor.execute("SELECT * FROM pgrerank.claim(%s, %s)", (self._claim_size, self._only))
        return await cursor.fetchone()

    async def _process(self, connection: psycopg.AsyncConnection[Any], claim: Claim) -> None:
        if encoded := [document for document in claim.documents if document.is_encoded]:
            await connection.execute(
                "SELECT pgrerank.finish(%s, %s, %s, %s)",
                (
                    *(claim.reranker, claim.generation),
                    [document.key for document in encoded],
                    [document.ticket for document in encoded],
                ),
            )
        if waiting := [document for document in claim.documents if not document.is_encoded]:
            encoders = {
                kind: await self._models.encoder(name, kind) for kind, name in claim.models.items()
            }
            reduction = await self._reduction(connection, claim, encoders)
            cuts = await asyncio.to_thread(cut_documents, claim, waiting, encoders)
            given_up: set[str] = set()
            several = list(portions(cuts, self._portion))
            if len(several) > 1:
                self._get_help()  # for those that wait behind a long document
            for portion in several:
                if works := [work for work in portion if work.cut.document.key not in given_up]:
                    given_up |= await self._encode_and_store(
                        connection, claim, works, encoders, reduction
                    )

    async def _reduction(
        self,
        connection: psycopg.AsyncConnection[Any],
        claim: Claim,
        encoders: dict[str, Encoder],
    ) -> Reduction:
        if claim.token_dims is None:
            return Reduction(claim.token_pool)
        matrix = await self._projections.of_generation(
            connection, claim, encoders["late_interaction"], self._engine
        )
        return Reduction(claim.token_pool, matrix)

    async def _encode_and_store(
        self,
        connection: psycopg.AsyncConnection[Any],
        claim: Claim,
        works: Sequence[Work],
        encoders: dict[str, Encoder],
        reduction: Reduction,
    ) -> set[str]:
        """Encode and store passages; where that fails, each document's alone, so that one is at
        fault. Returns the keys of those that are.
        """
        try:
            begun = time.monotonic()
            vectors = await self._encode(works, encoders, reduction)
            self._pace(works, time.monotonic() - begun)
            await _store(connection, claim, works, vectors)
        except (psycopg.OperationalError, EndpointError):
            raise
        except Exception as error:
            if len(works) == 1:
                await _fail(connection, claim, works[0].cut.document, error)
                return {works[0].cut.document.key}
            given_up: set[str] = set()
            for work in works:
                given_up |= await self._encode_and_store(
                    connection, claim, [work], encoders, reduction
                )
            return given_up
        return set()

    def _pace(self, works: Sequence[Work], took: float) -> None:
        """Fit claims, portions and sessions to how fast documents are encoded."""
        took = max(took, 1e-3)
        if all(len(work.passages) == len(work.cut.new) for work in works):  # no part of a document
            fitting = int(len(works) / took * CLAIM_SECONDS)
            self._claim_size = max(1, min(LARGEST_CLAIM, fitting))
        if characters := sum(len(one.reading) for work in works for one in work.passages):
            fitting = int(characters / took * PORTION_SECONDS)
            self._portion = max(SMALLEST_PORTION, min(LARGEST_PORTION, fitting))
        if not self._engine.waiting("ingest"):
            self._get_help()

    def _get_help(self) -> None:
        if 1 + len(self._helpers) < SESSIONS:
            self._helpers.append(asyncio.create_task(self._help()))

    async def _encode(
        self, works: Sequence[Work], encoders: dict[str, Encoder], reduction: Reduction
    ) -> list[Vectors]:
        texts = [passage.reading for work in works for passage in work.passages]
        return await encode_texts(self._engine, "ingest", encoders, "document", texts, reduction)


async def _store(
    connection: psycopg.AsyncConnection[Any],
    claim: Claim,
    works: Sequence[Work],
    vectors: Sequence[Vectors],
) -> None:
    """Store passages; where somebody has locked what is needed, try again for some seconds."""
    statement, values = await _storing(claim, works, vectors)
    for attempt in range(LOCKED_TRIES):
        try:
            await connection.execute(statement, values)
        except psycopg.errors.LockNotAvailable:
            if attempt + 1 == LOCKED_TRIES:
                raise
            await asyncio.sleep(0.25)
        else:
            return


async def _storing(
    claim: Claim, works: Sequence[Work], vectors: Sequence[Vectors]
) -> tuple[str, tuple[Any, ...]]:
    """The statement that stores passages, and its values."""
    owned = [(work.cut.document.key, passage) for work in works for passage in work.passages]
    embeddings = [one.embedding for one in vectors if one.embedding is not None]
    tiers = [DType(claim.token_precision), *([DType.BIT] if claim.token_bits else [])]
    packed = [await asyncio.to_thread(_parts, owned, vectors, tier) for tier in tiers]
    return (
        "SELECT pgrerank.store(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s,"
        f" %b{', %s, %s, %b, %b' * len(tiers)})",
        (
            *(claim.reranker, claim.generation),
            [work.cut.document.key for work in works],
            [work.cut.document.ticket for work in works],
            [work.cut.document.content_hash if work.is_last else None for work in works],
            [None if one is None else f"{{{','.join(map(str, one))}}}" for one in _bounds(works)],
            [key for key, _ in owned],
            [Int4(passage.number) for _, passage in owned],
            [passage.hash for _, passage in owned],
            [passage.cut_hash for _, passage in owned],
            [Int4(place) if embeddings else None for place, _ in enumerate(owned, 1)],
            Reals(np.concatenate([[], *embeddings])),
            *(column for tier in packed for column in tier),
        ),
    )


def _bounds(works: Sequence[Work]) -> list[Sequence[int] | None]:
    return [work.cut.bounds for work in works]


def _parts(
    owned: Sequence[tuple[str, Passage]], vectors: Sequence[Vectors], dtype: DType
) -> tuple[list[str], list[Int4], list[Int4], list[bytes]]:
    """Token vectors packed in parts: of each the key of its document, the number of its passage,
    its own, and the bytes.
    """
    parts = [
        (key, Int4(passage.number), Int4(number), part)
        for (key, passage), one in zip(owned, vectors, strict=True)
        if one.tokens is not None and len(one.tokens)
        for number, part in enumerate(pack_parts(one.tokens, dtype), 1)
    ]
    columns = list(zip(*parts, strict=True)) or [(), (), (), ()]
    keys, passages, numbers, tokens = map(list, columns)
    return keys, passages, numbers, tokens


async def _fail(
    connection: psycopg.AsyncConnection[Any], claim: Claim, document: Document, error: Exception
) -> None:
    reason = f"{type(error).__name__}: {error}"
    log.warning("reranker %s, key %s: %s", claim.reranker, document.key, reason)
    await connection.execute(
        "SELECT pgrerank.fail(%s, %s, %s, %s, %s)",
        (
            *(claim.reranker, claim.generation),
            *(document.key, document.ticket),
            reason.replace("\0", ""),
        ),
    )
