"""Asks an endpoint: within a time, again where that may help, and never for more than it should."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import httpx
import msgspec

from pgrerank.errors import EndpointError, ModelError, RefusedError, RequestError
from pgrerank.models.http.address import Address
from pgrerank.models.http.answers import AnswerError
from pgrerank.models.http.breaker import FAILURES, Breaker

T = TypeVar("T")
log = logging.getLogger(__name__)

SECONDS = 60.0
"""For one answer, where the caller has more."""
TRIES = 3
PAUSE = 0.25
"""Seconds before the second try, up to; doubled for each one more."""
LARGE = 2**20
"""Bytes of an answer from which it is read in a thread."""
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_AT_FAULT = frozenset({400, 413, 422})


class _NoAnswerError(Exception):
    """A try that got no usable answer; the next may. It tells what the endpoint asks to wait."""

    def __init__(self, reason: str, pause: float = 0.0, *, is_fault: bool = True) -> None:
        super().__init__(reason)
        self.pause = pause
        self.is_fault = is_fault


class Manners(NamedTuple):
    """How an endpoint is asked.

    ``concurrency``: requests under way at a time. ``hedge``: seconds after which a second request
    is sent beside one that is not answered. ``key_header``: the header that has the key alone, in
    place of ``Authorization``. ``tries``: how often, with up to ``pause`` seconds before the second
    time, and twice as many before each one more. ``seconds``: for one answer. ``failures``: in a
    row, after which it is left alone for a while.
    """

    concurrency: int = 8
    hedge: float | None = None
    key_header: str | None = None
    tries: int = TRIES
    pause: float | None = None
    seconds: float = SECONDS
    failures: float = FAILURES


class _Here(NamedTuple):
    """What belongs to one event loop."""

    client: httpx.AsyncClient
    room: asyncio.Semaphore


class Endpoint:
    """One model's endpoint. May be used from several event loops and threads."""

    def __init__(self, model: str, address: Address, manners: Manners) -> None:
        self._address = address
        self._manners = manners
        self.label = f"endpoint {address.shown} of model {model}"
        self._breaker = Breaker(self.label, manners.failures)
        self._tls = _tls()
        self._wait_until = 0.0
        self.requests = 0
        self.failed = 0
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Here] = WeakKeyDictionary()

    async def ask(
        self, body: Mapping[str, Any], read: Callable[[bytes], T], *, most: int, deadline: float
    ) -> T:
        """What `read` makes of the answer to a request, which may have `most` bytes.

        `deadline` is by `time.monotonic`. Raises EndpointError where no answer can be had now,
        RequestError (PGR02) where none came in time, ModelError where the endpoint says that the
        request is at fault. `read` raises AnswerError for what it does not believe.
        """
        content = json.dumps(body).encode()
        for tried in range(1, self._manners.tries + 1):
            self._breaker.check()
            try:
                answer = await self._try(content, read, most, deadline)
            except _NoAnswerError as error:
                await self._after(error, tried, deadline)
            except BaseException:
                self._breaker.gave_up()
                raise
            else:
                self._breaker.succeeded()
                return answer
        raise AssertionError  # the last try ends above

    async def _after(self, error: _NoAnswerError, tried: int, deadline: float) -> None:
        """Wait for the next try, or give up."""
        self.failed += 1
        self._breaker.failed() if error.is_fault else self._breaker.gave_up()
        own = PAUSE if self._manners.pause is None else self._manners.pause
        pause = max(error.pause, own * 2 ** (tried - 1) * random.uniform(0.5, 1))  # noqa: S311
        if error.pause:
            self._wait_until = time.monotonic() + error.pause
        left = deadline - time.monotonic()
        if left <= 0:
            raise RequestError(f"{self.label}: {error}", sqlstate="PGR02") from None
        if tried == self._manners.tries or pause >= min(left, SECONDS):
            raise EndpointError(f"{self.label}: {error}") from None
        await asyncio.sleep(pause)

    async def _try(
        self, content: bytes, read: Callable[[bytes], T], most: int, deadline: float
    ) -> T:
        """One try, with a second request beside it where the first takes long."""
        here = self._here()
        left = deadline - time.monotonic()
        waiting = self._wait_until - time.monotonic()
        if waiting >= left:
            raise _NoAnswerError(
                f"asks to wait {waiting:.1f} s more", pause=waiting, is_fault=False
            )
        try:
            async with asyncio.timeout(min(left, self._manners.seconds)):
                await asyncio.sleep(waiting)
                async with here.room:
                    begun = time.monotonic()
                    answer = await self._hedged(lambda: self._post(here.client, content, most))
        except TimeoutError:
            raise _NoAnswerError("no answer in time", is_fault=min(left, SECONDS) >= 1) from None
        log.debug("%s answered in %.0f ms", self.label, 1000 * (time.monotonic() - begun))
        try:
            return await asyncio.to_thread(read, answer) if len(answer) > LARGE else read(answer)
        except AnswerError as error:
            raise _NoAnswerError(f"answered {error}") from None

    async def _hedged(self, post: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """The first answer of one request, or of two; an error only where all have failed."""
        running = {asyncio.create_task(post())}
        try:
            done, _ = await asyncio.wait(running, timeout=self._manners.hedge)
            if not done:
                running.add(asyncio.create_task(post()))
            while True:
                done, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if task.exception() is None]
                if good or not others:
                    return (good or list(done))[0].result()
                running = others
        finally:
            for task in running:
                task.cancel()

    async def _post(self, client: httpx.AsyncClient, content: bytes, most: int) -> bytes:
        self.requests += 1
        received = bytearray()
        try:
            async with client.stream("POST", self._address.url, content=content) as response:
                coding = response.headers.get("Content-Encoding", "identity")
                if coding != "identity":
                    raise _NoAnswerError(f"answered in coding {coding!r}, which was not asked for")
                async for part in response.aiter_raw():
                    received += part
                    if len(received) > most:
                        raise _NoAnswerError(f"answered more than {most} bytes")
        except httpx.HTTPError as error:
            raise _NoAnswerError(self._reason(error)) from None
        if response.status_code != 200:
            self._refuse(response, bytes(received))
        return bytes(received)

    def _refuse(self, response: httpx.Response, received: bytes) -> None:
        """Raise what a status other than 200 means."""
        status = response.status_code
        said = f"answered {status}{self._said(received)}"
        if status in _AGAIN:
            pause = _retry_after(response.headers.get("Retry-After"))
            raise _NoAnswerError(said, pause, is_fault=status != 429)
        self._breaker.succeeded()
        if status in _AT_FAULT:
            raise ModelError(f"{self.label} {said}")
        hint = "; redirects are not followed" if response.is_redirect else ""
        raise RefusedError(f"{self.label} {said}{hint}: check its source and options")

    def _said(self, received: bytes) -> str:
        """What an error says of itself, if that is one line in a field that errors have."""
        try:
            found = msgspec.json.decode(received[:LARGE])
            while isinstance(found, dict):
                found = next(
                    (found[name] for name in ("error", "message", "detail") if name in found), None
                )
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return ""
        if not isinstance(found, str) or not found.isprintable():
            return ""
        return f" ({self._address.redact(found)[:200]})"

    def _reason(self, error: httpx.HTTPError) -> str:
        text = self._address.redact(str(error))[:200]
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def _here(self) -> _Here:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            key, header = self._address.key, self._manners.key_header
            headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
            if key is not None:
                headers |= {header: key} if header else {"Authorization": f"Bearer {key}"}
            client = httpx.AsyncClient(
                headers=headers,
                http2=True,
                timeout=SECONDS,
                follow_redirects=False,
                verify=self._tls,
            )
            self._loops[loop] = _Here(client, asyncio.Semaphore(self._manners.concurrency))
        return self._loops[loop]

    async def close(self) -> None:
        """Close this event loop's connections."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.client.aclose()


@functools.cache
def _tls() -> ssl.SSLContext:
    """The certificates that are trusted, read once: that takes longer than many a deadline."""
    return httpx.create_ssl_context()


def _retry_after(value: str | None) -> float:
    """Seconds that a header asks to wait, as a number or by a date (RFC 9110, 10.2.3)."""
    if value is None:
        return 0.0
    if value.isdecimal():
        return min(float(value), 86_400.0)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
