"""A worker's settings, checked at its start."""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pgrerank.errors import SettingsError
from pgrerank.models.http.address import is_loopback


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker does and where; Postgres must show the `password`. Port 0: any free one.

    `address` is where Postgres reaches it, if that is not where it listens. `http` is the address
    for HTTP clients, who must show the `http_key`, if there is one. `queue` is in requests, `cache`
    in bytes. `metrics` is the address for Prometheus, and `traces` the URL of an OTLP collector.
    """

    dsn: str
    host: str = "127.0.0.1"
    port: int = 6432
    password: str | None = None
    tls: ssl.SSLContext | None = None
    ingest: bool = True
    serve: bool = True
    preload: bool = False
    register: bool = False
    address: tuple[str, int] | None = None
    queue: int = 64
    cache: int = 64 * 2**20
    http: tuple[str, int] | None = None
    http_key: str | None = None
    metrics: tuple[str, int] | None = None
    traces: str | None = None
    checks: bool = True


def worker_settings(  # noqa: PLR0913 - the options of a command
    dsn: str,
    listen: str,
    password: str | None,
    *,
    tls: tuple[Path, Path | None] | None = None,
    ingest: bool = True,
    serve: bool = True,
    preload: bool = False,
    register: bool | str = False,
    queue: int = 64,
    cache: int = 64,
    http: str | None = None,
    http_key: str | None = None,
    metrics: str | None = None,
    traces: str | None = None,
    checks: bool = True,
) -> WorkerSettings:
    """Check the command line's settings, `cache` in MiB. Raises SettingsError.

    `register` is true, or where Postgres reaches the worker, if that is not where it listens.
    """
    host, port = _host_and_port("--listen", listen)
    address = _host_and_port("--address", register) if isinstance(register, str) else None
    if register and not address and host in ("0.0.0.0", "::"):  # noqa: S104 - refused, not bound
        raise SettingsError(
            f"--register can't write {host}: Postgres needs an address that it can reach; "
            "give it by --address HOST:PORT"
        )
    if not (ingest or serve or http):
        raise SettingsError("--no-ingest and --no-serve together leave nothing to do")
    http_address = None if http is None else _host_and_port("--http", http, 8080)
    if http_address is not None and not (http_key or is_loopback(http_address[0])):
        raise SettingsError(
            f"--http {http} is open to other machines: set PGRERANK_HTTP_KEY to the key that"
            " clients shall show, or listen on 127.0.0.1"
        )
    if traces is not None and urlsplit(traces).scheme not in ("http", "https"):
        raise SettingsError(
            f"--traces is {traces!r}: the URL of an OTLP/HTTP collector expected, such as"
            " http://127.0.0.1:4318"
        )
    if serve and not password:
        if not register:
            raise SettingsError(
                "no password: set PGRERANK_WORKER_PASSWORD to the one in the database's user "
                "mapping, or give --register to write a fresh one there"
            )
        password = secrets.token_urlsafe(24)
    return WorkerSettings(
        dsn=dsn,
        host=host,
        port=port,
        password=password,
        tls=_context(*tls) if tls else None,
        ingest=ingest,
        serve=serve,
        preload=preload,
        register=bool(register),
        address=address,
        queue=queue,
        cache=cache * 2**20,
        http=http_address,
        http_key=http_key or None,
        metrics=None if metrics is None else _host_and_port("--metrics", metrics, 9187),
        traces=traces,
        checks=checks,
    )


def _host_and_port(option: str, value: str, usual: int = 6432) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise SettingsError(f"{option} is {value!r}: HOST:PORT expected, such as 127.0.0.1:{usual}")
    return host.strip("[]"), int(port)


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"--tls-cert {certificate}, --tls-key {key}: {error}") from error
    return context
