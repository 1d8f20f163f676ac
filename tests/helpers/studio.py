"""Studio as users start it, in a process of its own; and a client that was let in."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.helpers.workers import forked, wait_for, worker

QUERY = "no connection in the pool"
HOSTILE = "<script>document.title = 'owned'</script><b>no pool</b>"
ROWS = [
    ("Pools", "The connection pool is exhausted when no connection is given back."),
    ("Cats", "A cat sleeps most of the day."),
    (HOSTILE, 'no "connection" in \' the <i>pool</i>'),
    ("中文", "连接池用完了。🙂 no connection"),
    *((f"Number {n}", f"the number of the pool is {n} and of the cat {n * n}") for n in range(12)),
]


def set_up(connection: psycopg.Connection[Any], models: dict[str, str], rows: Any = ROWS) -> None:
    """A table, the models, and a reranker of all stages over it."""
    connection.execute(
        "CREATE TABLE documents (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " title text, body text)"
    )
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO documents (title, body) VALUES (%s, %s)", rows)
    for name, kind, loader, dims in (
        ("embedding", "embedding", "sentence_transformer", 32),
        ("tokens", "late_interaction", "sentence_transformer", 32),
        ("reranker", "cross_encoder", "cross_encoder", None),
    ):
        connection.execute(
            "SELECT pgrerank.register_model(%s, %s, %s, %s, %s)",
            (name, kind, models[name], dims, loader),
        )
    connection.execute(
        "SELECT pgrerank.create_reranker('documents', 'documents', '{title,body}',"
        " embedding_model => 'embedding', late_interaction_model => 'tokens',"
        " cross_encoder_model => 'reranker', maxsim_top => 4, timeout => '20 s')"
    )


@contextlib.contextmanager
def encoded(dsn: str, models: dict[str, str], folder: Path) -> Iterator[str]:
    """The database with the documents, encoded, and a worker that answers."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        set_up(connection, models)
        with worker(dsn, folder):
            wait_for(connection, "pending = 0 AND encoded = source_rows")
            yield dsn


@contextlib.contextmanager
def studio(dsn: str, folder: Path) -> Iterator[str]:
    """`pgrerank studio` over a database; its address, with the token. Interrupted at the end."""
    log = folder / "studio.log"
    log.write_bytes(b"")
    process = forked(["studio", "--dsn", dsn, "--port", "0", "--no-open"], log)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://\S+", log.read_text("utf-8"))):
            if not process.is_alive() or time.monotonic() > deadline:
                raise AssertionError(f"studio did not start:\n{log.read_text('utf-8')}")
            time.sleep(0.05)
        yield found[0]
        assert process.is_alive(), log.read_text("utf-8")
        assert "Traceback" not in log.read_text("utf-8"), log.read_text("utf-8")
    finally:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
        process.join(20)
        is_late = process.is_alive()
        process.kill()
        process.join()
        assert not is_late, "studio did not end when it was interrupted"


class Client(httpx.Client):
    """A browser that has opened the address; `write` sends a form with the token of its pages."""

    def __init__(self, address: str) -> None:
        super().__init__(base_url=address.partition("/?")[0], timeout=60, follow_redirects=True)
        self.address = address

    def __enter__(self) -> Client:
        super().__enter__()
        page = self.get(self.address)
        [self.csrf] = re.findall(r'<meta name="csrf" content="([^"]+)">', page.text)
        return self

    def write(self, path: str, **fields: str) -> httpx.Response:
        return self.post(path, data=fields, headers={"X-CSRF-Token": self.csrf})

    def wait(self, response: httpx.Response) -> dict[str, object]:
        """Follow the job that a write has begun until it has ended."""
        job = response.url.path
        deadline = time.monotonic() + 60
        while (now := self.get(f"{job}/progress").json())["state"] == "running":
            assert time.monotonic() < deadline, now
            time.sleep(0.1)
        return now


def columns(page: str) -> list[list[str]]:
    """The keys of each column."""
    parts = page.split('<section class="column')[1:]
    return [re.findall(r'<li class="row[^"]*" data-key="([^"]*)"', part) for part in parts]
