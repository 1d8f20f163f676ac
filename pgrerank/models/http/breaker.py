"""Keeps requests from an endpoint that can't answer now."""

from __future__ import annotations

import time

from pgrerank.errors import EndpointError

FAILURES = 5
"""In a row, after which the endpoint is left alone for a while."""
SHORTEST, LONGEST = 1.0, 60.0
"""Seconds of such a while: doubled each time that the first request after it fails too."""


class Breaker:
    """Counts failures, and remembers when an endpoint wants to be asked again."""

    def __init__(self, endpoint: str, most: float = FAILURES) -> None:
        self._endpoint = endpoint
        self._most = most
        self._failures = 0
        self._pause = SHORTEST
        self._until = 0.0
        self._is_probing = False

    def check(self) -> None:
        """Raise EndpointError while nothing may be sent; afterwards one request may try."""
        left = self._until - time.monotonic()
        if left > 0 or self._is_probing:
            raise EndpointError(
                f"{self._endpoint} failed {self._failures} times in a row, and is asked again"
                f" in {max(left, 0):.1f} s"
            )
        self._is_probing = self._failures >= self._most

    def succeeded(self) -> None:
        """Take note of an answer, whatever it says."""
        self._failures, self._pause, self._until, self._is_probing = 0, SHORTEST, 0.0, False

    def failed(self) -> None:
        """Take note of a request that got no usable answer."""
        self._failures += 1
        self._is_probing = False
        if self._failures >= self._most:
            self._until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST)

    def gave_up(self) -> None:
        """Take note of a request that its caller did not wait for, which says nothing."""
        self._is_probing = False
