"""Runs studio until it is interrupted."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import webbrowser
from collections.abc import Callable

import uvicorn

from pgrerank.errors import SettingsError
from pgrerank.install.schema import connect
from pgrerank.studio.app import create_app
from pgrerank.studio.connections import Connections
from pgrerank.studio.security import Secrets
from pgrerank.studio.state import Studio

__all__ = ["has_desktop", "run_studio"]

HOST = "127.0.0.1"
PORT = 8780
"""Where it is found if nobody else is there."""


def run_studio(
    dsn: str, port: int | None, *, open_browser: bool, on_ready: Callable[[str], None]
) -> None:
    """Serve the page on this machine until Ctrl-C; `on_ready` is told its address.

    A port of None is the usual one, or any where that is taken. Raises psycopg.Error where the
    database can't be reached, InstallError where it has no pgrerank, SettingsError where the port
    is taken.
    """
    connect(dsn).close()
    with _listening(port) as listening:
        secrets = Secrets(listening.getsockname()[1])
        studio = Studio(secrets, Connections(dsn))
        address = f"http://{HOST}:{secrets.port}/?token={secrets.token}"
        on_ready(address)
        if open_browser:
            webbrowser.open(address)
        # The log of requests would tell the token.
        config = uvicorn.Config(
            create_app(studio),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=3,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        studio.connections.close()


def has_desktop() -> bool:
    """Whether there is a browser with windows to open; one in the terminal would take that over."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _listening(port: int | None) -> socket.socket:
    try:
        return _bound(PORT if port is None else port)
    except OSError as error:
        if port is not None:
            raise SettingsError(
                f"port {port} on {HOST} can't be had: {error.strerror}; give another by --port, or"
                " leave that out"
            ) from error
        return _bound(0)


def _bound(port: int) -> socket.socket:
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening
