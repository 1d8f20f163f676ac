"""Servers besides the one that tests share: ones that are killed, standbys, publishers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgrerank import embedded
from pgrerank.embedded import EmbeddedServer
from pgrerank.embedded.binaries import account, find
from pgrerank.embedded.cluster import PASSWORD_FILE, environment


@contextlib.contextmanager
def standby(dsn: str, data: Path, folder: Path) -> Iterator[EmbeddedServer]:
    """A hot standby below `folder` of the embedded server with that data folder, with all that had
    been committed there.
    """
    who = account()
    (data / PASSWORD_FILE).chmod(0o644)  # else the server's account can't copy it
    folder.chmod(0o777)
    copy = folder / "standby"
    subprocess.run(
        [find(who) / "pg_basebackup", "-d", dsn, "-D", copy, "-R", "-c", "fast"],
        cwd="/",
        env=environment(),
        check=True,
        **(who.arguments if who else {}),
    )
    with embedded.start(copy, settings={"fsync": "off"}) as server:
        yield server


def database(dsn: str, server: EmbeddedServer) -> str:
    """The connection string of the same database on another server."""
    parts = conninfo_to_dict(server.dsn)
    return make_conninfo(dsn, host=parts["host"], port=parts["port"])


def either(*dsns: str) -> str:
    """A connection string to whichever of the servers can be written to."""
    parts = [conninfo_to_dict(dsn) for dsn in dsns]
    hosts, ports = (",".join(str(part[key]) for part in parts) for key in ("host", "port"))
    return make_conninfo(dsns[0], host=hosts, port=ports, target_session_attrs="read-write")
