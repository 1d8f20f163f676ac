"""Searches through a real pgbouncer in transaction mode."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.helpers.urls import url
from tests.helpers.workers import wait_for, worker

PROGRAM = shutil.which("pgbouncer", path=os.defpath + ":/usr/sbin:/usr/local/bin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")
SEARCH = "SELECT id, degraded FROM pgrerank.documents_search('a pool', strict => true)"


@contextlib.contextmanager
def pgbouncer(dsn: str, folder: Path) -> Iterator[str]:
    """Two server sessions for everybody; the connection string that leads through it."""
    parts = conninfo_to_dict(dsn)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    target = " ".join(
        f"{key}={parts[key]}"
        for key in ("host", "port", "dbname", "user", "password")
        if key in parts
    )
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\npooled = {target}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n"
        "unix_socket_dir =\npool_mode = transaction\ndefault_pool_size = 2\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    who = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        config.chmod(0o644)
    with config.open() as stream:  # which a user may read whom the folder is closed to
        process = subprocess.Popen([str(PROGRAM), "-q", "/dev/stdin"], stdin=stream, **who)
    through = f"host=127.0.0.1 port={port} dbname=pooled user=whoever password=x"
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(through).close()
                break
            assert time.monotonic() < deadline, "pgbouncer did not come up"
            time.sleep(0.05)
        yield through
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def pooled(dsn, db, source, tiny_models, tmp_path) -> Iterator[str]:
    source.models(**tiny_models)
    source.create()
    with worker(dsn, tmp_path), pgbouncer(dsn, tmp_path) as through:
        wait_for(db, "s.pending = 0")
        yield through


def test_many_clients_search_over_few_sessions(pooled):
    def client(_: int) -> set[tuple[int, bool]]:
        found = set()
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as connection:
            for _ in range(8):
                found.update(connection.execute(SEARCH).fetchall())
        return found

    with ThreadPoolExecutor(6) as clients:
        assert list(clients.map(client, range(6))) == [{(1, False), (2, False), (3, False)}] * 6


def test_a_tenant_that_is_set_for_a_transaction_is_seen_by_no_other(pooled, db, make_role):
    role = make_role()
    db.execute("UPDATE documents SET tenant = id")
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute(
        "CREATE POLICY own ON documents USING (tenant = current_setting('app.tenant', true)::int)"
    )
    db.execute(f"GRANT SELECT ON documents TO {role}")

    def client(tenant: int) -> list[list[int]]:
        found = []
        with psycopg.connect(pooled, prepare_threshold=None) as connection:
            for _ in range(6):
                with connection.transaction():
                    connection.execute(f"SET LOCAL ROLE {role}")
                    connection.execute("SELECT set_config('app.tenant', %s, true)", (str(tenant),))
                    found.append([key for key, _ in connection.execute(SEARCH).fetchall()])
        return found

    with ThreadPoolExecutor(3) as clients:
        assert list(clients.map(client, (1, 2, 3))) == [[[tenant]] * 6 for tenant in (1, 2, 3)]


def test_a_cancelled_search_leaves_the_session_fit_for_the_next_client(pooled):
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as first:
        for _ in range(3):
            with first.transaction(), contextlib.suppress(psycopg.errors.QueryCanceled):
                first.execute("SET LOCAL statement_timeout = '1ms'")
                first.execute(SEARCH)
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as second:
        for _ in range(4):
            assert len(second.execute(SEARCH).fetchall()) == 3


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_sqlalchemy_with_the_settings_that_the_page_tells(pooled, driver):
    settings = (
        {"prepare_threshold": None}
        if driver == "psycopg"
        else {"statement_cache_size": 0, "prepared_statement_name_func": lambda: ""}
    )

    async def search() -> list[int]:
        engine = create_async_engine(url(pooled, driver), poolclass=NullPool, connect_args=settings)
        found = []
        for _ in range(8):
            async with engine.connect() as connection:
                rows = await connection.execute(text(SEARCH))
                found.append(len(rows.all()))
        await engine.dispose()
        return found

    assert asyncio.run(search()) == [3] * 8


def test_a_worker_that_is_led_through_it_refuses(pooled, tmp_path):
    with (
        pytest.raises(AssertionError, match=r"(?s)through a pooler.*address of Postgres itself"),
        worker(pooled, tmp_path),
    ):
        pass
