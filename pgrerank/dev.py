"""A database to develop against: the embedded server, the schema, a worker."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from pathlib import Path

import psycopg

from pgrerank import embedded
from pgrerank.install import schema
from pgrerank.terminal import note
from pgrerank.worker.child import worker_process


def run_dev(data: Path | None, port: int | None, *, with_worker: bool) -> None:
    """Run until SIGINT or SIGTERM; prints the connection string on standard output.

    Raises PgrerankError when the server or the worker does not start.
    """
    stopping = {signal.SIGINT, signal.SIGTERM}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(embedded.start(data, port=port))
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            schema.install(connection)
            engine = schema.maxsim_engine(connection)
        if with_worker:
            logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(worker_process(server.dsn, logs / "worker.log"))
        signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # kept until sigwait asks for them
        sys.stdout.write(server.dsn + "\n")
        sys.stdout.flush()
        note(
            f"MaxSim by {engine}" + (f": {server.without_kernel}" if server.without_kernel else "")
        )
        note(f"ready: psql '{server.dsn}'\nCtrl-C stops it" + ("" if data else " and forgets all"))
        signal.sigwait(stopping)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)
