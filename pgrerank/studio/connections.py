"""Connections to the database, kept between requests: a session's first search takes longer."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import psycopg

from pgrerank.install.schema import connect

_KEPT = 4


class Connections:
    """Lends autocommit connections of one role; those given back whole are lent again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: queue.LifoQueue[psycopg.Connection[Any]] = queue.LifoQueue(_KEPT)

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection that answers; raises psycopg.OperationalError where there is none."""
        connection = self._living() or self.open()
        try:
            yield connection
        finally:
            self._take_back(connection)

    def open(self) -> psycopg.Connection[Any]:
        """A connection of the caller's own, which isn't given back."""
        return connect(self._dsn, application_name="pgrerank studio", connect_timeout=10)

    def close(self) -> None:
        """Close those that are idle."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _living(self) -> psycopg.Connection[Any] | None:
        """An idle connection whose server hasn't gone since."""
        with contextlib.suppress(queue.Empty):
            while True:
                connection = self._idle.get_nowait()
                with contextlib.suppress(psycopg.Error):
                    connection.execute("SELECT")
                    return connection
                connection.close()
        return None

    def _take_back(self, connection: psycopg.Connection[Any]) -> None:
        is_whole = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        try:
            if is_whole:
                self._idle.put_nowait(connection)
                return
        except queue.Full:
            pass
        connection.close()
