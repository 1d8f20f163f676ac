"""Who gets into the wire server: SCRAM, trust, TLS, protocol versions."""

from __future__ import annotations

import ssl
import struct
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from scramp import ScramClient

from pgrerank.wire.scram import PasswordUnusableError
from pgrerank.wire.server import RequestError, Rows, Session, WireServer, WireServerError
from tests.helpers.certificates import certificate as made
from tests.helpers.wire_served import (
    GSS_REQUEST,
    HELLO,
    SSL_REQUEST,
    Raw,
    Served,
    message,
    next_result,
    packet,
    serving,
)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"password": "wrong"}, 'password authentication failed for user "worker"'),
        ({"user": "nobody"}, 'password authentication failed for user "nobody"'),
        ({"password": ""}, "no password supplied"),
        ({"sslmode": "require"}, "server does not support SSL"),
        ({"require_auth": "none"}, "authentication method requirement"),
    ],
)
def test_who_is_not_let_in(locked: Served, options: dict[str, str], words: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=words):
        locked.connect(**options)
    assert locked.answers()


def scram_try(served: Served, user: str) -> tuple[str, str]:
    """What the server says to a wrong password: salt and iterations, and the SQLSTATE."""
    client = ScramClient(["SCRAM-SHA-256"], user, "wrong")
    with Raw(served, packet(0x30000, f"user\0{user}\0\0".encode())) as raw:
        assert raw.receive() == (b"R", b"\0\0\0\x0aSCRAM-SHA-256\0\0")
        first = client.get_client_first().encode()
        raw.socket.sendall(
            message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first)) + first)
        )
        server_first = raw.receive()[1][4:].decode()
        client.set_server_first(server_first)
        raw.socket.sendall(message(b"p", client.get_client_final().encode()))
        return server_first.split(",", 1)[1], raw.error()["C"]


def test_an_unknown_user_looks_like_a_wrong_password(locked: Served) -> None:
    known, unknown = scram_try(locked, "worker"), scram_try(locked, "nobody")
    assert known == scram_try(locked, "worker")
    assert unknown == scram_try(locked, "nobody")
    assert (len(known[0]), known[1]) == (len(unknown[0]), "28P01")
    assert known[0] != unknown[0]


def test_what_a_server_refuses_to_be() -> None:
    async def handler(_text: str, _session: Session) -> Rows:
        raise RequestError("unused")

    for password in ("", "a\tb"):
        with pytest.raises(PasswordUnusableError, match="password"):
            WireServer(handler, user="worker", password=password, ssl=None)
    with pytest.raises(WireServerError, match="certificate"):
        WireServer(handler, user=None, password=None, ssl=None, require_ssl=True)


def test_trust_takes_only_its_user() -> None:
    with serving(password=None) as served:
        assert served.answers(password=None)
        with pytest.raises(psycopg.OperationalError, match='no user "other"'):
            served.connect(user="other")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    cert, key = made(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="needs libpq 17, which cancels by TLS")
def test_tls(certificate: tuple[Path, ssl.SSLContext]) -> None:
    cert, context = certificate
    verified = {"sslmode": "verify-full", "sslrootcert": str(cert)}
    with serving(ssl=context, require_ssl=True) as served:
        with pytest.raises(psycopg.OperationalError, match="TLS only"):
            served.connect(sslmode="disable")
        with pytest.raises(psycopg.OperationalError, match="channel binding"):
            served.connect(channel_binding="require", **verified)
        with closing(served.connect(**verified)) as connection:
            assert connection.execute("WHO").fetchall()[0][-1] == "True"
            assert connection.pgconn.exec_(b"x" * 5_000_000).get_value(0, 0) == b"5000000"
            connection.pgconn.send_query(b"WAIT")
            assert served.started.wait(5)
            connection.cancel_safe()
            assert b"user request" in next_result(connection).error_message
        with Raw(served, packet(SSL_REQUEST) + HELLO) as raw:  # CVE-2021-23214
            raw.dies("08P01")
        with Raw(served, packet(SSL_REQUEST)) as raw:
            assert raw.file.read(1) == b"S"
            raw.socket.sendall(HELLO * 9)
            raw.file.read()
        assert served.answers(**verified)


@pytest.mark.skipif(psycopg.pq.version() < 180000, reason="needs libpq 18")
def test_protocols_newer_than_ours_are_negotiated(trusting: Served) -> None:
    with closing(trusting.connect(max_protocol_version="latest")) as connection:
        assert connection.pgconn.full_protocol_version == 30002
    with Raw(trusting, packet(0x3270F, b"user\0u\0_pq_.new\0x\0\0")) as raw:
        assert raw.receive() == (b"v", b"\0\x03\0\x02\0\0\0\x01_pq_.new\0")
        assert len(dict(raw.until_ready())[b"K"]) == 4 + 32
    with Raw(trusting, packet(GSS_REQUEST), packet(SSL_REQUEST), HELLO) as raw:
        assert raw.file.read(2) == b"NN"
        assert raw.kinds().endswith(b"KZ")
