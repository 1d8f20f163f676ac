"""A client of chat endpoints for those who wait: patient, and used from several threads."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pgrerank.errors import EndpointError, EvaluationError, ModelError, RefusedError
from pgrerank.models.http.address import Address
from pgrerank.models.http.chat import MOST_BYTES
from pgrerank.models.http.chat import Chat as AsyncChat
from pgrerank.models.http.endpoint import Endpoint, Manners

__all__ = ["MOST_BYTES", "Chat"]

T = TypeVar("T")

SECONDS = 60.0
"""For one answer, from the first byte sent to the last received."""
TRIES = 4


class Chat:
    """Asks a model for JSON of a schema, at temperature 0, in an event loop of its own.

    Raises EvaluationError for an address that is none.
    """

    def __init__(self, url: str, model: str, key: str | None, *, pause: float = 1.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise EvaluationError(
                f"the endpoint is {url!r}, expected one such as https://api.openai.com/v1"
            )
        full = url.rstrip("/") + "/chat/completions"
        manners = Manners(
            concurrency=64, tries=TRIES, pause=pause, seconds=SECONDS, failures=math.inf
        )
        self._endpoint = Endpoint(model, Address(full, full, key), manners)
        self._chat = AsyncChat(self._endpoint, model)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def read(self) -> int:
        """Tokens that the model read, as the endpoint reports them, for unusable answers too."""
        return self._chat.read

    @property
    def written(self) -> int:
        """Tokens that it wrote."""
        return self._chat.written

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._endpoint.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(
        self, system: str, user: str, schema: Mapping[str, Any], parse: Callable[[Any], T]
    ) -> T | None:
        """What `parse` makes of the answer; None where no try gave one that it takes.

        `parse` raises ValueError for what it does not take. Raises EvaluationError where the
        endpoint refuses, as for a wrong key, and no further try would help.
        """
        asked = self._chat.ask(system, user, schema, parse, math.inf)
        try:
            return asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        except (RefusedError, ModelError) as error:
            raise EvaluationError(
                f"{error}: check --url, --model and the key that --key-env names"
            ) from error
        except EndpointError:
            return None
