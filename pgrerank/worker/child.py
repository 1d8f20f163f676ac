"""A worker as a child process, for those who bring their own database along."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pgrerank.errors import WorkerError


@contextlib.contextmanager
def worker_process(
    dsn: str, log: Path, *options: str, keep: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A registered worker on a free port, ready; its messages go to `log`.

    Stopped at the end, unless `keep` is set and all went well: then it outlives this process.
    Raises WorkerError when it does not get ready.
    """
    command = [sys.executable, "-m", "pgrerank", "worker", "--dsn", dsn]
    command += ["--register", "--listen", "127.0.0.1:0", *options]
    with log.open("w") as stream:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stderr=stream, start_new_session=keep
        )
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


def _await(process: subprocess.Popen[bytes], log: Path) -> None:
    while not any(line.startswith("ready") for line in log.read_text("utf-8").splitlines()):
        if process.poll() is not None:
            raise WorkerError(f"the worker did not start; {log} says:\n{log.read_text('utf-8')}")
        time.sleep(0.05)
