"""Before a request is read: who asks, how much is sent, how slowly; and whether he still waits."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pgrerank.worker.http.api import RETRY_AFTER, problem

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health", "/openapi.json", "/docs", "/redoc"})
"""Paths that need no key: they tell nothing of models or data."""
MOST_BYTES = 16 * 2**20
"""Of one request's body."""
MOST_HELD = 256 * 2**20
"""Bytes of all bodies together: as much as one message over the wire may have."""
BODY_SECONDS = 30.0
"""From a request's head to the end of its body."""


class _Refused(Exception):  # noqa: N818 - it is an answer
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.answer = problem(status, message, {"Connection": "close", **(headers or {})})


class Gatekeeper:
    """Lets requests through to an application, whole and of a bounded size.

    With a `key`, clients must show it as a bearer token.
    """

    def __init__(self, app: App, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = bytearray()
        try:
            if scope["path"] not in OPEN:
                self._check_key(scope)
            async with asyncio.timeout(BODY_SECONDS):
                await self._read(scope, receive, body)
            await self._run(scope, bytes(body), receive, send)
        except _Refused as refusal:
            await refusal.answer(scope, receive, send)
        except TimeoutError:
            late = _Refused(408, f"the body was not there after {BODY_SECONDS:g} s")
            await late.answer(scope, receive, send)
        except ConnectionError:
            log.debug("a client left while it sent a request")
        finally:
            self._held -= len(body)

    def _check_key(self, scope: Message) -> None:
        if self._key is None:
            return
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = shown.partition(b" ")
        fits = hmac.compare_digest(token.strip(), self._key)
        if scheme.lower() != b"bearer" or not fits:
            raise _Refused(
                401,
                "show the worker's key: Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """Read the body, held in memory and counted as such."""
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(told) > MOST_BYTES:
            raise _too_large(int(told))
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            part = message.get("body", b"")
            if len(body) + len(part) > MOST_BYTES:
                raise _too_large(len(body) + len(part))
            if self._held + len(part) > MOST_HELD:
                raise _Refused(503, "the worker has too many requests at once", RETRY_AFTER)
            body += part
            self._held += len(part)
            more = message.get("more_body", False)

    async def _run(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        """Have the application answer; what a client that leaves waited for is dropped."""
        gone: asyncio.Task[Message] = asyncio.ensure_future(_disconnect(receive))
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await asyncio.shield(gone)

        answer = asyncio.ensure_future(self._app(scope, replay, send))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            for task in (answer, gone):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await answer


async def _disconnect(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def _too_large(size: int) -> _Refused:
    return _Refused(413, f"the body has {size} bytes or more, expected up to {MOST_BYTES}")
