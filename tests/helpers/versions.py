"""Databases of older versions, and what two databases differ in."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import psycopg

from pgrerank.embedded.binaries import account, find
from pgrerank.install import schema


def install_release(connection: psycopg.Connection, version: str) -> None:
    """What `pgrerank install` of that release did."""
    with connection.transaction():
        for file in schema.wrapped(schema.released_files(version)):
            connection.execute(file.read_bytes())


def dump(dsn: str, *options: str) -> str:
    """pg_dump's output, without what differs from run to run."""
    done = subprocess.run(
        [_pg_dump(dsn), *options, dsn], capture_output=True, text=True, check=True
    )
    return re.sub(r"^\\(un)?restrict .*\n", "", done.stdout, flags=re.MULTILINE)


def _pg_dump(dsn: str) -> Path:
    """The server's own, for it knows what not to dump; or the embedded server's."""
    with psycopg.connect(dsn) as connection:
        major = connection.info.server_version // 10000
    own = Path(f"/usr/lib/postgresql/{major}/bin/pg_dump")
    return own if own.exists() else find(account()) / "pg_dump"


def restore(dumped: str, dsn: str) -> None:
    """What `psql` does with it, stopping at the first error."""
    subprocess.run(
        [find(account()) / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", dsn],
        input=dumped,
        capture_output=True,
        text=True,
        check=True,
    )
