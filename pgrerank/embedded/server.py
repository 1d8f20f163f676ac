"""Starting and stopping the server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from pgrerank.embedded.binaries import Account, account, find
from pgrerank.embedded.cluster import PASSWORD_FILE, environment, prepare
from pgrerank.embedded.extensions import extension_settings
from pgrerank.errors import EmbeddedServerError
from pgrerank.guard import Guard

_START_SECONDS = 60
_STOP_SECONDS = 20
_TEMPORARY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass
class EmbeddedServer:
    """A running server. As a context manager it stops at the block's end.

    ``without_kernel`` says why it was started without the native MaxSim kernel; None if it has it.
    """

    data: Path
    port: int
    bin: Path
    password: str = field(repr=False)
    socket_folder: Path
    pid: int
    temporary: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _guard: Guard | None = field(default=None, repr=False)
    without_kernel: str | None = None

    @property
    def dsn(self) -> str:
        """URI over TCP to database postgres as its superuser, password included."""
        return f"postgresql://postgres:{quote(self.password)}@127.0.0.1:{self.port}/postgres"

    @property
    def socket_dsn(self) -> str:
        """URI over the Unix socket."""
        folder = quote(str(self.socket_folder), safe="")
        return f"postgresql://postgres:{quote(self.password)}@{folder}:{self.port}/postgres"

    @property
    def log(self) -> Path:
        """The file of its messages."""
        return self.data / "server.log"

    @property
    def is_running(self) -> bool:
        """Whether its process is alive."""
        return not self._is_over(0)

    def create_database(self, name: str) -> str:
        """Create a database; returns its URI."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn.removesuffix("postgres") + quote(name, safe="")

    def stop(self) -> None:
        """Stop the server: sessions end, data is safe. A temporary one leaves nothing behind."""
        for number, seconds in ((signal.SIGINT, _STOP_SECONDS), (signal.SIGQUIT, 5)):
            if self._is_over(0):  # by now its id may be another's
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            if self._is_over(seconds):
                break
        if self._guard is not None:
            self._guard.dismiss()
        shutil.rmtree(self.socket_folder, ignore_errors=True)
        if self.temporary:
            shutil.rmtree(self.data, ignore_errors=True)

    def _is_over(self, seconds: float) -> bool:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return self._process.returncode is not None
        deadline = time.monotonic() + seconds
        while _is_postgres(self.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not _is_postgres(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def start(
    data: Path | str | None = None,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    detach: bool = False,
    kernel: bool = True,
) -> EmbeddedServer:
    """Start a server and wait until it answers.

    `data` is its folder, made and filled where missing and kept afterwards; without it the server
    is temporary, quick and forgetful. `port` is a TCP port on 127.0.0.1, by default any free one.
    `settings` are those of postgresql.conf. With `detach` it outlives this process; `running`
    finds it again. The native kernel is compiled at the first start, where there is a C compiler;
    without `kernel` it is left out, and MaxSim is the worker's.

    Raises EmbeddedServerError when the programs are missing, the folder holds something else or is
    in use, the port is taken, or the server does not come up.
    """
    if detach and data is None:
        raise EmbeddedServerError("a detached server needs a data folder to be found by again")
    who = account()
    programs = find(who)
    if data is not None and (other := running(data)) is not None:
        raise EmbeddedServerError(
            f"data folder {data} is in use by the server with process id {other.pid}, port "
            f"{other.port}: stop it (kill -INT {other.pid}) or choose another folder"
        )
    temporary = data is None
    folder = Path(tempfile.mkdtemp(prefix="pgrerank-") if data is None else data).absolute()
    try:
        password = prepare(folder, programs, who)
        extensions, without_kernel = extension_settings(folder, programs, kernel=kernel)
        options = {**extensions, **(settings or {})}
        server = _launch(folder, programs, who, password, port, options, temporary, detach)
    except BaseException:
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    server.without_kernel = without_kernel
    return server


def running(data: Path | str) -> EmbeddedServer | None:
    """The server that runs on a data folder, started by whatever process; None if there is none."""
    folder = Path(data).absolute()
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (folder / "postmaster.pid").read_text("utf-8").splitlines()
        pid, port, socket_folder = int(lines[0]), int(lines[3]), Path(lines[4])
        if _is_postgres(pid):
            password = (folder / PASSWORD_FILE).read_text("utf-8")
            return EmbeddedServer(folder, port, find(account()), password, socket_folder, pid)
    return None


def _launch(
    folder: Path,
    programs: Path,
    who: Account | None,
    password: str,
    port: int | None,
    settings: dict[str, str],
    temporary: bool,
    detach: bool,
) -> EmbeddedServer:
    """Start the process; a port that was free a moment ago but is taken now is tried again."""
    sockets = Path(tempfile.mkdtemp(prefix="pgrerank-", dir="/tmp"))
    if who is not None:
        os.chown(sockets, who.uid, who.gid)
    for attempt in range(1 if port else 5):
        chosen = port or _free_port()
        options = {
            "port": str(chosen),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(sockets),
            **(_TEMPORARY if temporary else {}),
            **settings,
        }
        process = _spawn(folder, programs, who, options)
        guard = None if detach else Guard(process.pid, [sockets, *([folder] if temporary else [])])
        server = EmbeddedServer(
            folder, chosen, programs, password, sockets, process.pid, temporary, process, guard
        )
        try:
            if _await(server, process):
                return server
        except BaseException:
            server.stop()
            raise
        if guard is not None:
            guard.dismiss()
        said = server.log.read_text("utf-8", "replace")
        if "Address already in use" not in said or port or attempt == 4:
            break
    shutil.rmtree(sockets, ignore_errors=True)
    raise EmbeddedServerError(_explain(folder, port, said))


def _spawn(
    folder: Path, programs: Path, who: Account | None, options: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    with (folder / "server.log").open("wb") as stream:
        return subprocess.Popen(  # noqa: S603
            [programs / "postgres", "-D", folder, *_settings_arguments(options)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd="/",
            env=environment(),
            start_new_session=True,
            **(who.arguments if who else {}),
        )


def _settings_arguments(options: Mapping[str, str]) -> list[str]:
    return [word for key, value in options.items() for word in ("-c", f"{key}={value}")]


def _await(server: EmbeddedServer, process: subprocess.Popen[bytes]) -> bool:
    """Whether the server came up; False when its process ended."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None:
        try:
            psycopg.connect(server.dsn, connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                said = server.log.read_text("utf-8", "replace")[-2000:]
                raise EmbeddedServerError(
                    f"the server on {server.data} does not answer after {_START_SECONDS} s: "
                    f"{error}\n{said}"
                ) from error
            time.sleep(0.02)
        else:
            return True
    return False


def _explain(folder: Path, port: int | None, said: str) -> str:
    if port and "Address already in use" in said:
        return f"port {port} on 127.0.0.1 is taken: choose another, or none for any free one"
    return f"the server on {folder} did not start; its log says:\n{said.strip()[-2000:]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_postgres(pid: int) -> bool:
    """Whether a process of that id is alive and is no zombie or stranger."""
    done = subprocess.run(  # noqa: S603
        ["ps", "-o", "stat=,command=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    state, _, command = done.stdout.strip().partition(" ")
    return bool(state) and not state.startswith("Z") and "postgres" in command
