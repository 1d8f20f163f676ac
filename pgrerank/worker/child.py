"""A worker as a child process, for those who bring their own database along."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgrerank.errors import WorkerError
from pgrerank.guard import Guard


@contextlib.contextmanager
def worker_process(
    dsn: str, log: Path, *options: str, keep: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A registered worker on a free port, ready; its messages go to `log`.

    Stopped at the end, unless `keep` is set and all went well: then it outlives this process.
    Raises WorkerError when it does not get ready.
    """
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    password = {"PGPASSWORD": parts.pop("password", "")}  # a command line is for all to read
    command = [sys.executable, "-m", "pgrerank", "worker", "--dsn", make_conninfo(**parts)]
    command += ["--register", "--listen", "127.0.0.1:0", *options]
    with log.open("w") as stream:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=os.environ | password,
            start_new_session=True,
        )
    guard = None if keep else Guard(process.pid)
    try:
        _await(process, log)
        yield process
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            process.terminate()
            process.wait()
        if guard is not None:
            guard.dismiss()


def _await(process: subprocess.Popen[bytes], log: Path) -> None:
    while not any(line.startswith("ready") for line in log.read_text("utf-8").splitlines()):
        if process.poll() is not None:
            raise WorkerError(f"the worker did not start; {log} says:\n{log.read_text('utf-8')}")
        time.sleep(0.05)
