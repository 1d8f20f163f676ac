"""What goes wrong in a campaign: workers, network and Postgres are killed, stopped and mended."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
from chaos_proxy import Proxy

from pgrerank import embedded
from pgrerank.errors import EmbeddedServerError
from pgrerank.terminal import note
from tests.helpers.workers import WorkerProcess

PAUSE = (2.0, 5.0)
"""Seconds between two faults."""
WORKER_GROWTH, BACKEND_SIZE = 500, 200
"""MiB that a worker may grow by, and that a backend may have of its own."""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def memory(pid: int, kind: str) -> int:
    """MiB of a process, by /proc; 0 when it has gone, or where there is no /proc."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
            if line.startswith(kind):
                return int(line.split()[1]) // 1024
    return 0


class Worker:
    """A worker behind a proxy, that is started anew whenever it has died, as by systemd."""

    def __init__(self, number: int, dsn: str, folder: Path, seed: str) -> None:
        self.folder, self.number, self.dsn = folder / f"worker-{number}", number, dsn
        self.folder.mkdir()
        self.port = free_port()
        self.proxy = Proxy(self.port, f"{seed}-proxy-{number}")
        self.asleep_until = 0.0
        self.first_size = 0
        self.start()

    def start(self) -> None:
        """Start the process; it registers the proxy's address."""
        self.process = WorkerProcess(
            self.dsn,
            self.folder,
            *("--preload", "--register", "--listen", f"127.0.0.1:{self.port}"),
            *("--address", f"127.0.0.1:{self.proxy.port}"),
            environment={},
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is a process."""
        if self.process.process.is_alive():
            self.process.signal(number)

    def tend(self) -> None:
        """Start the process again where it has died."""
        if time.monotonic() > self.asleep_until and not self.process.process.is_alive():
            self.process.close()
            self.start()

    def grown(self) -> int:
        """MiB by which it has grown since it was first seen ready."""
        pid = self.process.process.pid
        size = memory(pid, "VmRSS") if self.process.process.is_alive() else 0
        if size and "ready" in self.process.log.read_text("utf-8"):
            self.first_size = self.first_size or size
        return size - self.first_size if self.first_size else 0


class Faults(threading.Thread):
    """Does harm at intervals, by a seed, until told to stop; then mends everything."""

    def __init__(
        self,
        seed: str,
        server: embedded.EmbeddedServer,
        workers: list[Worker],
        violate: Callable[[str], None],
    ) -> None:
        super().__init__(name="faults", daemon=True)
        self._random = random.Random(f"{seed}-faults")
        self.server, self.workers, self._violate = server, workers, violate
        self.counts: Counter[str] = Counter()
        self.events: list[float] = []
        self.ending = threading.Event()
        self._mending: list[tuple[float, Callable[[], None]]] = []
        self._oversized: set[str] = set()

    def run(self) -> None:
        """Alternate harm and care."""
        following = time.monotonic() + self._random.uniform(*PAUSE)
        while not self.ending.wait(0.25):
            if time.monotonic() > following:
                following = time.monotonic() + self._random.uniform(*PAUSE)
                self._harm()
            self._care()
        for _, mend in self._mending:
            mend()
        for worker in self.workers:
            worker.asleep_until = 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not self._care():
            time.sleep(0.25)

    def _harm(self) -> None:
        deeds = (
            *[self._kill, self._freeze] * 4,
            *[self._restart, self._spoil] * 3,
            *(self._end_sessions, self._kill_backend, self._kill_server),
        )
        deed = self._random.choice(deeds)
        deed(self._random.choice(self.workers))

    def _did(self, what: str, worker: Worker | None = None) -> None:
        self.counts[what] += 1
        self.events.append(time.monotonic())
        note(f"{what} {worker.number if worker else ''}")

    def _later(self, deed: Callable[[], None]) -> None:
        self._mending.append((time.monotonic() + self._random.uniform(0.5, 4), deed))

    def _kill(self, worker: Worker) -> None:
        self._did("kill", worker)
        worker.asleep_until = time.monotonic() + self._random.uniform(0, 2)
        worker.signal(signal.SIGKILL)

    def _freeze(self, worker: Worker) -> None:
        self._did("stop", worker)
        worker.signal(signal.SIGSTOP)
        self._later(lambda: worker.signal(signal.SIGCONT))

    def _restart(self, worker: Worker) -> None:
        self._did("restart", worker)
        worker.signal(signal.SIGTERM)

    def _spoil(self, worker: Worker) -> None:
        how = self._random.choice(("cut", "cut", "refuse", "slow"))
        self._did(how, worker)
        worker.proxy.spoil(how)
        self._later(worker.proxy.mend)

    def _end_sessions(self, _: Worker) -> None:
        self._did("end sessions")
        self._execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            " ORDER BY random() LIMIT 3"
        )

    def _kill_backend(self, _: Worker) -> None:
        self._did("kill backend")
        rows = self._execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
        )
        for (pid,) in rows:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _kill_server(self, _: Worker) -> None:
        self._did("kill server")
        port = self.server.port
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()
        deadline = time.monotonic() + 30
        while True:
            try:
                self.server = start_server(self.server.data, port)
            except EmbeddedServerError:  # its backends have not noticed yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _execute(self, statement: str) -> list[tuple[int]]:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self.server.dsn) as connection:
            return connection.execute(statement).fetchall()
        return []

    def _care(self) -> bool:
        """Mend what is due, look at sizes; whether all workers are ready."""
        due = [deed for when, deed in self._mending if when <= time.monotonic()]
        self._mending = [pair for pair in self._mending if pair[0] > time.monotonic()]
        for deed in due:
            deed()
        for worker in self.workers:
            worker.tend()
            self._measure(f"worker {worker.number} grew by", worker.grown(), WORKER_GROWTH)
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children")
        with contextlib.suppress(OSError):
            for pid in children.read_text("utf-8").split():
                self._measure("a backend has", memory(int(pid), "RssAnon"), BACKEND_SIZE)
        logs = (worker.process.log.read_text("utf-8") for worker in self.workers)
        return all("\nready" in log or log.startswith("ready") for log in logs)

    def _measure(self, what: str, size: int, most: int) -> None:
        if size > most and what not in self._oversized:
            self._oversized.add(what)
            self._violate(f"memory: {what} {size} MiB, {most} expected at most")


def start_server(folder: Path, port: int | None = None) -> embedded.EmbeddedServer:
    """A server that loses nothing when it is killed; only the machine's death would hurt it."""
    return embedded.start(folder, port=port, settings={"fsync": "off", "max_connections": "200"})
