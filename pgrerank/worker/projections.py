"""The projections that reduce token vectors: fitted once a generation, kept in the database."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from pgrerank.errors import RequestError
from pgrerank.models import Encoder
from pgrerank.models.reduction import Reduction, SecondMoment
from pgrerank.tokens import DType, pack, unpack
from pgrerank.worker.claim import Claim
from pgrerank.worker.encoding import encode_texts
from pgrerank.worker.engine import Engine
from pgrerank.worker.session import open_session

log = logging.getLogger(__name__)

KEPT = 32
"""Projections held in memory; one of 384 to 128 dimensions takes 200 kB."""

Matrix = NDArray[np.float32]


class Projections:
    """Matrices [reduced dims, dims] by their MD5, as generations name them."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._matrices: dict[str, Matrix] = {}
        self._fitting = asyncio.Lock()

    async def get(self, md5: str) -> Matrix:
        """The projection of that name. Raises RequestError where no generation has it."""
        if md5 not in self._matrices:
            async with await open_session(self._dsn, "projections") as connection:
                cursor = await connection.execute(
                    "SELECT matrix FROM pgrerank.projections WHERE md5(matrix) = %s LIMIT 1", (md5,)
                )
                row = await cursor.fetchone()
            if row is None:
                raise RequestError(f"no generation has the projection {md5}", sqlstate="42704")
            self._keep(row[0])
        return self._matrices[md5]

    async def of_generation(
        self,
        connection: psycopg.AsyncConnection[Any],
        claim: Claim,
        encoder: Encoder,
        engine: Engine,
    ) -> Matrix:
        """The projection of the claimed generation, fitted on a sample if need be.

        Where two workers fit one at the same time, the first is kept and both go by it.
        """
        if claim.projection is not None:
            return await self.get(claim.projection)
        assert claim.token_dims is not None
        generation = (claim.reranker, claim.generation)
        async with self._fitting:
            cursor = await connection.execute(
                "SELECT projection FROM pgrerank.generations WHERE (reranker, number) = (%s, %s)",
                generation,
            )
            row = await cursor.fetchone()
            if row is not None and row[0] is not None:
                return await self.get(row[0])
            cursor = await connection.execute(
                "SELECT * FROM pgrerank.sample_texts(%s, %s)", generation
            )
            texts = [text for [text] in await cursor.fetchall()]
            moment, documents = await _moment(texts, encoder, claim.token_pool, engine)
            packed = pack(moment.projection(claim.token_dims), DType.FLOAT16)
            cursor = await connection.execute(
                "SELECT pgrerank.keep_projection(%s, %s, %s, %s)", (*generation, packed, documents)
            )
            [kept] = await cursor.fetchone() or [None]
            return self._keep(kept or packed)

    def _keep(self, packed: bytes) -> Matrix:
        while len(self._matrices) >= KEPT:
            del self._matrices[next(iter(self._matrices))]
        matrix = unpack(packed)
        self._matrices[hashlib.md5(packed, usedforsecurity=False).hexdigest()] = matrix
        return matrix


async def _moment(
    texts: list[str], encoder: Encoder, pool: int, engine: Engine
) -> tuple[SecondMoment, int]:
    """The second moment of the texts' token vectors, and the number of texts in it.

    Texts that can't be encoded are skipped.
    """
    assert encoder.token_dims is not None
    moment = SecondMoment(encoder.token_dims)
    documents = 0
    parts = [texts]
    while parts:
        part = parts.pop()
        try:
            vectors = await encode_texts(
                engine, "ingest", {"late_interaction": encoder}, "document", part, Reduction(pool)
            )
        except Exception as error:
            if len(part) > 1:
                parts += [[text] for text in part]
            else:
                log.warning("a text of the sample can't be encoded: %s", error)
            continue
        for one in vectors:
            assert one.tokens is not None
            moment.add(one.tokens)
        documents += len(part)
    return moment, documents
