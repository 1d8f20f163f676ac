"""The example application, as its README tells to run it, with the demo's real models."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.helpers.urls import url
from tests.helpers.workers import wait_for, worker

APPLICATION = Path(__file__).parents[1] / "examples" / "fastapi_rag"
NOTES = {
    1: [
        ("Pools", "The pool is exhausted when nobody gives connections back."),
        ("Cats", "Asleep."),
    ],
    2: [("Salaries", "What the pool's maintainer earns."), ("Bread", "Flour and water.")],
}


def alembic(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=APPLICATION,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def service(empty_dsn, tmp_path) -> Iterator[httpx.Client]:
    environment = os.environ | {"DATABASE_URL": url(empty_dsn, "asyncpg")}
    alembic(environment, "upgrade", "head")
    assert "No new upgrade operations detected" in alembic(environment, "check")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)]
    process = subprocess.Popen(command, cwd=APPLICATION, env=environment)
    try:
        with (
            worker(empty_dsn, tmp_path),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ):
            while True:
                try:
                    client.get("/openapi.json")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None
                    time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()
    alembic(environment, "downgrade", "base")


def test_tenants_write_and_search_their_own_notes(service, empty_dsn):
    for tenant, notes in NOTES.items():
        for title, body in notes:
            answer = service.post(
                "/notes", json={"title": title, "body": body}, headers={"X-Tenant": str(tenant)}
            )
            assert answer.status_code == 201
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        wait_for(connection, "s.encoded = 4 AND s.pending = 0")
    for tenant, best in ((1, "Pools"), (2, "Salaries")):
        answer = service.get(
            "/search", params={"q": "why is my pool exhausted"}, headers={"X-Tenant": str(tenant)}
        )
        found = answer.json()
        assert {note["title"] for note in found} == {title for title, _ in NOTES[tenant]}
        assert found[0]["title"] == best
        assert (found[0]["stage"], found[0]["degraded"]) == ("cross_encoder", False)
        assert [note["rank"] for note in found] == [1, 2]
    assert service.get("/search", params={"q": "x"}).status_code == 422
