"""Input that breaks the protocol ends its own connection and nothing else."""

from __future__ import annotations

import socket
import struct
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.wire_served import (
    CANCEL_REQUEST,
    HELLO,
    PASSWORD,
    SSL_REQUEST,
    Raw,
    Served,
    message,
    next_result,
    packet,
    query,
    serving,
)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\0\0\0\x04",
        b"Q\0\0\0\x03",
        b"Q\0\0\0\0",
        b"Q\xff\xff\xff\xff",
        b"Q" + struct.pack("!I", 40_000_005),
        message(b"Q"),
        message(b"Q", b"PING"),
        message(b"Q", b"PI\0NG\0"),
        message(b"X", b"x"),
        message(b"p", b"secret\0"),
        message(b"P") + b"\0\0\0\0\0",
    ],
)
def test_malformed_messages_end_their_connection_only(trusting: Served, data: bytes) -> None:
    with closing(trusting.connect()) as other, Raw(trusting) as raw:
        raw.login()
        raw.socket.sendall(data)
        if data[:1] == b"P":
            assert raw.error()["C"] == "0A000"
        raw.dies("08P01")
        assert other.execute("PING").fetchall() == [("pong",)]


SASL = b"SCRAM-SHA-256\0"


@pytest.mark.parametrize(
    ("data", "sqlstate"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "08P01"),
        (b"\0\0\0\x04", "08P01"),
        (struct.pack("!I", 10_001), "08P01"),
        (packet(0x20000), "0A000"),
        (packet(0x30000, b"\0"), "28000"),
        (packet(0x30000, b"user\0worker\0"), "08P01"),
        (packet(0x30000, b"user\0worker\0odd\0\0"), "08P01"),
        (packet(0x30000, b"user\0\xff\0\0"), "22021"),
        (packet(CANCEL_REQUEST), "08P01"),
        (packet(SSL_REQUEST, b"x"), "08P01"),
        (HELLO + query("PING"), "08P01"),
        (HELLO + b"p\0\0\0\x03", "08P01"),
        (HELLO + b"p" + struct.pack("!I", 10_001), "08P01"),
        (HELLO + message(b"p", PASSWORD.encode() + b"\0"), "08P01"),
        (HELLO + message(b"p", SASL + b"\0\0\0\xff" + b"n,,n=,r=x"), "08P01"),
        (HELLO + message(b"p", b"PLAIN\0\0\0\0\x03n,,"), "08P01"),
        (HELLO + message(b"p", SASL + b"\0\0\0\x03\xff,,"), "08P01"),
        (HELLO + message(b"p", SASL + b"\0\0\0\x09n,,n=,r=,"), "08P01"),
        (HELLO + message(b"p", SASL + b"\0\0\0\x1ap=tls-unique,,n=,r=rOprNGfw"), "08P01"),
        (
            HELLO + message(b"p", SASL + b"\0\0\0\x10n,,n=,r=rOprNGfw") + message(b"p", b"\xff"),
            "28P01",
        ),
    ],
)
def test_malformed_start_ups_end_their_connection_only(
    locked: Served, data: bytes, sqlstate: str
) -> None:
    with Raw(locked, data) as raw:
        got = [raw.receive()]
        while got[-1][0] == b"R":
            got.append(raw.receive())
        assert got[-1][0] == b"E"
        assert b"VFATAL\0C" + sqlstate.encode() in got[-1][1]
        assert raw.file.read() == b""
    assert locked.answers()


def test_the_longest_message() -> None:
    with serving(password=None, max_message=1_000_000) as served:
        with closing(served.connect()) as connection:
            assert connection.pgconn.exec_(b"x" * 999_999).get_value(0, 0) == b"999999"
            connection.pgconn.send_query(b"x" * 3_000_000)  # exec_() would keep the last error only
            assert b"longer than 1000000" in next_result(connection).error_message
        assert served.answers()


PHASES = {"start": [], "refused": [packet(SSL_REQUEST)], "sasl": [HELLO]}


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    phase=st.sampled_from(["start", "refused", "sasl", "ready", "waiting"]),
    kind=st.sampled_from([b"", *(bytes([c]) for c in b"QXPBDECSHFdcfp")]),
    framed=st.booleans(),
    garbage=st.binary(max_size=300),
)
def test_garbage_in_any_phase_harms_nobody_else(
    locked: Served, trusting: Served, phase: str, kind: bytes, framed: bool, garbage: bytes
) -> None:
    before = {"ready": [HELLO], "waiting": [HELLO, query("x")], **PHASES}[phase]
    served = locked if phase in PHASES else trusting
    data = message(kind, garbage) if framed else kind + garbage
    with Raw(served, *before) as raw:
        try:
            raw.socket.sendall(data)
            raw.socket.shutdown(socket.SHUT_WR)
            while raw.socket.recv(65536):
                pass
        except ConnectionError:
            pass
    assert served.answers()
