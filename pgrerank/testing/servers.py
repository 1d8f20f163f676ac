"""Finds the server that tests run on: a named one, one in Docker, or the embedded one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

from pgrerank.errors import EmbeddedServerError

__all__ = ["DSN", "IMAGE", "server"]

DSN = "PGRERANK_TEST_DSN"
"""Environment variable: connection string of a role that may create databases and extensions."""
IMAGE = "PGRERANK_TEST_IMAGE"
"""Environment variable: the image for Docker."""
_DEFAULT_IMAGE = "pgvector/pgvector:pg18"
_DOCKER_SECONDS = 5


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Connection string of a server: that of PGRERANK_TEST_DSN; else, where a Docker engine
    answers, a container's; else the embedded one's. Stopped at the end, if it was started here.

    Raises EmbeddedServerError where there is none of the three.
    """
    if dsn := os.environ.get(DSN):
        yield dsn
    elif _docker_answers():
        with _container() as dsn:
            yield dsn
    else:
        from pgrerank import embedded

        try:
            running = embedded.start()
        except EmbeddedServerError as error:
            raise EmbeddedServerError(
                f"no Postgres for tests: {DSN} is not set, no Docker engine answers, and {error}"
            ) from error
        with running:
            yield running.dsn


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer(os.environ.get(IMAGE) or _DEFAULT_IMAGE, driver=None) as running:
        yield running.get_connection_url()


def _docker_answers() -> bool:
    """Whether there are testcontainers to use and an engine to use them on, which may hang."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        import testcontainers  # noqa: F401

        done = subprocess.run(  # noqa: S603
            [docker, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=_DOCKER_SECONDS,
            check=False,
        )
    except (ImportError, OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
