"""The requests that Postgres sends; docs/reference/protocol.md describes them."""

from __future__ import annotations

import binascii
from typing import Annotated, Any

import msgspec

from pgrerank.errors import RequestError
from pgrerank.passages import Structure, words

__all__ = [
    "Align",
    "CrossEncode",
    "Encode",
    "Envelope",
    "Highlight",
    "Listwise",
    "MaxSim",
    "Request",
    "Shown",
    "parse",
    "unhex",
]


class _Call(msgspec.Struct, frozen=True, tag_field="call"):
    """A request names itself in the field `call`."""


class Encode(_Call, frozen=True, tag="encode"):
    """Encode queries by the models named, and reduce their token vectors by the projection.

    Models that take an instruction are given it.
    """

    texts: list[str]
    embedding: str | None = None
    late_interaction: str | None = None
    projection: str | None = None
    instruction: str | None = None


class MaxSim(_Call, frozen=True, tag="maxsim"):
    """Score documents; all are packed token vectors in hexadecimal."""

    query: str
    documents: list[str]


class CrossEncode(_Call, frozen=True, tag="cross_encode"):
    """Score documents by a cross-encoder, which is given the instruction if it takes one.

    Of documents in HTML it reads what is between the tags.
    """

    model: str
    query: str
    documents: list[str]
    instruction: str | None = None
    structure: Structure = "plain"

    @property
    def readings(self) -> list[str]:
        """What is read of the documents."""
        return [words(text, self.structure) for text in self.documents]


class Listwise(CrossEncode, frozen=True, tag="listwise"):
    """Order documents, which come in the order of earlier stages, by a language model."""


class Align(_Call, frozen=True, tag="align"):
    """Say which token of each document answers which of the query's."""

    model: str
    query: str
    documents: list[str]


class Shown(msgspec.Struct, frozen=True):
    """A passage: its text, and its token vectors in hexadecimal."""

    text: str
    tokens: str


class Highlight(_Call, frozen=True, tag="highlight"):
    """Say which words of passages answer the query's, whose packed token vectors are given."""

    model: str
    query: str
    passages: list[Shown]
    structure: Structure = "plain"


Request = Encode | MaxSim | CrossEncode | Listwise | Align | Highlight


class Envelope(msgspec.Struct, frozen=True):
    """A request with the id that its answer repeats, and its deadline in milliseconds.

    `traceparent` is the span that it belongs to, as W3C Trace Context writes it, if that is what it
    is. Nobody waits for one in the background.
    """

    request: Request
    id: Any = None
    timeout_ms: Annotated[float, msgspec.Meta(gt=0)] = 60_000
    traceparent: Any = None
    background: bool = False


def unhex(text: str) -> bytes:
    """Bytes of packed token vectors; raises RequestError for what is no hexadecimal."""
    try:
        return binascii.unhexlify(text)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"token vectors are not hexadecimal: {error}", sqlstate="22023"
        ) from error


def parse(statement: str) -> Envelope:
    """Read a request; raises RequestError, saying what is wrong and where in it."""
    try:
        return msgspec.json.decode(statement, type=Envelope)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise RequestError(f"the request is malformed: {error}", sqlstate="22023") from error
