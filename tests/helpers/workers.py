"""Starting the worker: the command as users give it, in a process of its own.

The process is forked from one that has imported the libraries: to import them takes longer than
most tests do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pgrerank.cli", "pgrerank.worker.process", "sentence_transformers"])


def _run(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    from pgrerank.cli import app

    os.environ.clear()
    os.environ.update(environment)
    with open(log, "wb") as stream:
        os.dup2(stream.fileno(), 2)
    app(arguments, prog_name="pgrerank")


def forked(arguments: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Any:
    """`pgrerank ARGUMENTS` as a started process, its standard error kept in `log`."""
    wanted = {**os.environ, **(environment or {})}
    process = _SERVER.Process(target=_run, args=(arguments, str(log), wanted))
    process.start()
    return process


class WorkerProcess:
    """`pgrerank worker`, its standard error kept in a file."""

    def __init__(
        self, dsn: str, folder: Path, *options: str, environment: Mapping[str, str]
    ) -> None:
        self.log = folder / "worker.log"
        self.log.write_bytes(b"")  # one before may have been ready
        self.process = forked(["worker", "--dsn", dsn, *options], self.log, environment)

    def wait_until_ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not re.search("^ready", self.log.read_text("utf-8"), re.MULTILINE):
            if not self.process.is_alive() or time.monotonic() > deadline:
                raise AssertionError(
                    f"the worker did not get ready:\n{self.log.read_text('utf-8')}"
                )
            time.sleep(0.05)

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None while it runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.join()

    def close(self) -> None:
        if self.process.is_alive():
            self.signal(signal.SIGCONT)
            self.process.terminate()
            if self.wait(20) is None:
                self.process.kill()
                self.process.join()
        self.process.close()


@contextlib.contextmanager
def worker(
    dsn: str,
    folder: Path,
    *options: str,
    listen: str = "127.0.0.1:0",
    environment: dict[str, str] | None = None,
) -> Iterator[WorkerProcess]:
    """A registered worker, ready; stopped at the end."""
    options = (*options, "--register", "--listen", listen)
    process = WorkerProcess(dsn, folder, *options, environment=environment or {})
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.close()


@contextlib.contextmanager
def asking(db: psycopg.Connection[Any]) -> Iterator[Callable[[str], list[tuple[str, ...]]]]:
    """A client of the registered worker itself: rows of texts, or one with the error."""
    options = dict(
        db.execute(
            "SELECT o.option_name, o.option_value"
            " FROM pg_foreign_server s, pg_options_to_table(s.srvoptions) o"
        ).fetchall()
    )
    [password] = db.execute(
        "SELECT o.option_value FROM pg_user_mapping m, pg_options_to_table(m.umoptions) o"
        " WHERE o.option_name = 'password'"
    ).fetchone()
    conninfo = make_conninfo(
        host=options["host"], port=options["port"], user="pgrerank", password=password, dbname="x"
    )
    with psycopg.connect(conninfo) as connection:

        def ask(statement: str) -> list[tuple[str, ...]]:
            result = connection.pgconn.exec_(statement.encode())
            if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
                return [(result.error_message.decode(),)]
            return [
                tuple(result.get_value(row, column).decode() for column in range(result.nfields))
                for row in range(result.ntuples)
            ]

        yield ask


@contextlib.contextmanager
def unstorable(dsn: str, key: int) -> Iterator[None]:
    """Let no vectors of a document be stored meanwhile, so that encoding can't be complete.

    Documents are claimed in the order of their keys as text: "99" is among the last.
    """
    with psycopg.connect(dsn) as holder:
        # Storing locks the source's row by its foreign key, and waits for this.
        holder.execute("SELECT FROM documents WHERE id = %s FOR UPDATE", (key,))
        yield


def wait_for(connection: psycopg.Connection[Any], condition: str, seconds: float = 100) -> None:
    """Wait until a SQL condition over `pgrerank.status s` holds."""
    deadline = time.monotonic() + seconds
    query = f"SELECT coalesce(bool_and({condition}), true) FROM pgrerank.status s"
    while not connection.execute(query).fetchone()[0]:
        if time.monotonic() > deadline:
            rows = connection.execute("SELECT * FROM pgrerank.status").fetchall()
            raise AssertionError(f"{condition} did not come true: {rows}")
        time.sleep(0.05)


def settle(connection: psycopg.Connection[Any]) -> None:
    """What a worker does with documents that need no model, and when nothing waits."""
    for _ in range(2):
        while connection.execute("SELECT FROM pgrerank.claim()").fetchone() is not None:
            pass
