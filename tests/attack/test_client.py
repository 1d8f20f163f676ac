"""A hostile client of the wire server: what it does costs others nothing, and the server little.

Malformed input, wrong passwords, slow clients and large messages are in tests/test_wire*.py.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from contextlib import ExitStack, closing

import pytest

from pgrerank.errors import RequestError
from pgrerank.worker import memory as bounds
from pgrerank.worker.requests import parse
from tests.helpers.wire_served import HELLO, Raw, Served, query, serving


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def half_open(stack: ExitStack, served: Served, number: int, first: bytes) -> None:
    for _ in range(number):
        made = stack.enter_context(closing(socket.create_connection(("127.0.0.1", served.port))))
        if first:
            with contextlib.suppress(ConnectionError):
                made.sendall(first)


def test_half_open_connections_keep_out_nobody_who_is_in_and_nobody_for_long() -> None:
    with serving(authentication_seconds=0.5) as served, closing(served.connect()) as known:
        before = memory()
        with ExitStack() as stack:
            half_open(stack, served, 250, b"")
            half_open(stack, served, 250, HELLO[:7])
            half_open(stack, served, 250, HELLO)
            assert known.pgconn.exec_(b"PING").get_value(0, 0) == b"pong"
            began = time.monotonic()
            assert served.recovers()
            assert time.monotonic() - began < 5
        assert memory() - before < 64 * 2**20


def test_a_flood_of_statements_of_one_client_leaves_others_their_turn() -> None:
    with serving(password=None) as served, Raw(served) as flooding:
        flooding.login()
        before = memory()
        flooding.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            for _ in range(100):  # it reads none of the answers
                flooding.socket.sendall(query("LARGE"))
                flooding.socket.sendall(query("x" * 500_000))
        began = time.monotonic()
        assert served.answers(password="")
        assert time.monotonic() - began < 2
        assert memory() - before < 512 * 2**20


@pytest.mark.parametrize(
    "statement",
    [
        '{"request": ' * 100_000,
        '{"id": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"timeout_ms": 1e999, "request": {"call": "encode", "texts": []}}',
        '{"timeout_ms": -1, "request": {"call": "encode", "texts": []}}',
        '{"request": {"call": "encode", "texts": {"length": 4000000000}}}',
        '{"request": {"call": "cross_encode", "model": "m", "query": "q", "documents": ["'
        + "x" * 9_000_000
        + '"]}}',
        '{"request": {"call": "encode", "texts": ["' + "x" * 200_000 + '"]}}',
        '{"request": {"call": "__import__", "texts": []}}',
        '{"request": {"call": "encode", "texts": ["\\ud800"]}}',
    ],
)
def test_what_is_deep_or_huge_is_refused_before_any_work(statement: str) -> None:
    began = time.monotonic()
    with pytest.raises(RequestError):
        bounds.check(parse(statement).request)
    assert time.monotonic() - began < 1
