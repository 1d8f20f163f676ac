"""A client of OpenAI-compatible chat endpoints. What comes back is not trusted."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from pgrerank.errors import EvaluationError

T = TypeVar("T")

SECONDS = 60.0
"""For one answer, from the first byte sent to the last received."""
MOST_BYTES = 2**20
"""Of an answer."""
TRIES = 4
LONGEST_PAUSE = 30.0
"""Seconds between two tries, whatever Retry-After asks for."""
_AGAIN = frozenset({408, 409, 425, 429})


class _NoAnswerError(Exception):
    """An answer that can't be used; the next may be."""

    def __init__(self, pause: float | None = None) -> None:
        super().__init__()
        self.pause = pause


class Chat:
    """Asks a model for JSON of a schema, at temperature 0. May be used from several threads.

    ``read`` and ``written`` count tokens as the endpoint reports them, of unusable answers too.
    Raises EvaluationError for an address that is none.
    """

    def __init__(self, url: str, model: str, key: str | None, *, pause: float = 1.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise EvaluationError(
                f"the endpoint is {url!r}, expected one such as https://api.openai.com/v1"
            )
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._pause = pause
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx.Client(headers=headers, timeout=SECONDS, follow_redirects=False)
        self._counting = threading.Lock()
        self.read = 0
        self.written = 0

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, system: str, user: str, schema: Mapping[str, Any], parse: Callable[[Any], T]
    ) -> T | None:
        """What `parse` makes of the answer; None where no try gave one that it takes.

        `parse` raises ValueError for what it does not take. Raises EvaluationError where the
        endpoint refuses, as for a wrong key, and no further try would help.
        """
        body = {
            "model": self._model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": user},
            ],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            },
        }
        for attempt in range(TRIES):
            try:
                return self._parsed(self._post(body), parse)
            except (httpx.HTTPError, _NoAnswerError) as error:
                if attempt + 1 < TRIES:
                    asked = getattr(error, "pause", None)
                    own = self._pause * 2**attempt * random.uniform(0.5, 1)  # noqa: S311 - jitter
                    time.sleep(min(LONGEST_PAUSE, max(own, asked or 0)))
        return None

    def _post(self, body: Mapping[str, Any]) -> bytes:
        deadline = time.monotonic() + SECONDS
        received = bytearray()
        with self._client.stream("POST", self._url, json=body) as response:
            if response.status_code in _AGAIN or response.status_code >= 500:
                raise _NoAnswerError(_seconds(response.headers.get("Retry-After")))
            if response.status_code != 200:
                raise EvaluationError(
                    f"{self._url} answered {response.status_code}, expected 200: check --url,"
                    " --model and the key that --key-env names"
                )
            for part in response.iter_bytes():
                received += part
                if len(received) > MOST_BYTES or time.monotonic() > deadline:
                    raise _NoAnswerError
        return bytes(received)

    def _parsed(self, answer: bytes, parse: Callable[[Any], T]) -> T:
        try:
            found = json.loads(answer)
            self._count(found.get("usage"))
            return parse(json.loads(found["choices"][0]["message"]["content"]))
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise _NoAnswerError from error

    def _count(self, usage: Any) -> None:
        """Add what the endpoint says it read and wrote, where those are numbers."""
        if isinstance(usage, dict):
            with self._counting:
                self.read += _tokens(usage.get("prompt_tokens"))
                self.written += _tokens(usage.get("completion_tokens"))


def _tokens(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else 0


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdecimal() else None
