"""Starting the worker as users do: the command, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg


class WorkerProcess:
    """`pgrerank worker`, its standard error kept in a file."""

    def __init__(self, dsn: str, folder: Path, *options: str, environment: dict[str, str]) -> None:
        self.log = folder / "worker.log"
        self._stream = self.log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pgrerank", "worker", "--dsn", dsn, *options],
            stderr=self._stream,
            env=os.environ | environment,
        )

    def wait_until_ready(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not re.search("^ready", self.log.read_text("utf-8"), re.MULTILINE):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"the worker did not get ready:\n{self.log.read_text('utf-8')}"
                )
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._stream.close()


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
def unstorable(dsn: str, key: int) -> Iterator[None]:
    """Let no vectors of a document be stored meanwhile, so that encoding can't be complete.

    Documents are claimed in the order of their keys as text: "99" is among the last.
    """
    with psycopg.connect(dsn) as holder:
        # Storing locks the source's row by its foreign key, and waits for this.
        holder.execute("SELECT FROM documents WHERE id = %s FOR UPDATE", (key,))
        yield


def wait_for(connection: psycopg.Connection[Any], condition: str, seconds: float = 60) -> None:
    """Wait until a SQL condition over `pgrerank.status s` holds."""
    deadline = time.monotonic() + seconds
    query = f"SELECT coalesce(bool_and({condition}), true) FROM pgrerank.status s"
    while not connection.execute(query).fetchone()[0]:
        if time.monotonic() > deadline:
            rows = connection.execute("SELECT * FROM pgrerank.status").fetchall()
            raise AssertionError(f"{condition} did not come true: {rows}")
        time.sleep(0.05)
