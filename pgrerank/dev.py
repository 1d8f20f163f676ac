"""A database to develop against: the embedded server, the schema, a worker."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

from pgrerank import embedded
from pgrerank.embedded import EmbeddedServer
from pgrerank.errors import EmbeddedServerError
from pgrerank.install import schema
from pgrerank.terminal import note
from pgrerank.worker.child import worker_process

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_LOOK_SECONDS = 0.5
_LINES = 10


def run_dev(data: Path | None, port: int | None, *, with_worker: bool) -> None:
    """Run until SIGINT or SIGTERM; prints the connection string on standard output.

    A worker that dies is followed by another. Raises PgrerankError when the server or the worker
    does not start, or when the server dies.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(embedded.start(data, port=port))
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            schema.install(connection)
            engine = schema.maxsim_engine(connection)
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "worker.log"
        worker = stack.enter_context(worker_process(server.dsn, log)) if with_worker else None
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # kept until they are asked for
        sys.stdout.write(server.dsn + "\n")
        sys.stdout.flush()
        note(
            f"MaxSim by {engine}" + (f": {server.without_kernel}" if server.without_kernel else "")
        )
        note(f"ready: psql '{server.dsn}'\nCtrl-C stops it" + ("" if data else " and forgets all"))
        while signal.sigtimedwait(_STOPPING, _LOOK_SECONDS) is None:
            if not server.is_running:
                raise EmbeddedServerError(f"Postgres died; {_last_lines(server.log)}")
            if worker is not None and worker.poll() is not None:
                worker = _follow(worker, server, log, stack)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _follow(
    dead: subprocess.Popen[bytes], server: EmbeddedServer, log: Path, stack: contextlib.ExitStack
) -> subprocess.Popen[bytes]:
    """Start another worker in place of a dead one, and say so."""
    code = dead.returncode
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    note(f"the worker died ({how}); {_last_lines(log)}\nstarting another")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)  # which the worker would inherit
    worker = stack.enter_context(worker_process(server.dsn, log))
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    note("another worker is ready")
    return worker


def _last_lines(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()[-_LINES:]
    return "\n".join(["the last of its log:", *(f"  {line}" for line in lines)])
