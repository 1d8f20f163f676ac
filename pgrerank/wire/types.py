"""Types that the wire server shares with its handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

from pgrerank.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Session:
    """Who asks: what the client said of itself at start-up, and where it comes from.

    `peer` is "host:port"; `process_id` is what the client sees as its backend's process id.
    """

    process_id: int
    user: str
    database: str
    application_name: str
    peer: str
    tls: bool


class Rows(NamedTuple):
    """An answer: all columns are of type text, None is NULL.

    `tag` is the command tag that psql prints, such as "SELECT 1". Without columns only the tag is
    sent.
    """

    columns: tuple[str, ...]
    rows: list[tuple[str | None, ...]]
    tag: str


Handler = Callable[[str, Session], Awaitable[Rows]]
"""Answers one query text, handed over as it came (a trailing ';' included).

Raises `pgrerank.errors.RequestError` for an error that the client shall see. It is cancelled
when the client cancels or goes away.
"""


class FatalError(ProtocolError):
    """Ends a connection, with a last message to its client; the server lives on."""

    def __init__(self, message: str, *, sqlstate: str = "08P01") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class ConnectionLostError(ProtocolError):
    """The client is gone."""
