"""A client of chat endpoints as OpenAI has them, which asks for JSON of a schema.

The format is that of platform.openai.com/docs/api-reference/chat, with structured outputs; vLLM,
Ollama, LiteLLM and many providers speak it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pgrerank.models.http.answers import AnswerError
from pgrerank.models.http.endpoint import Endpoint

T = TypeVar("T")

MOST_BYTES = 2**20
"""Of an answer."""


class Chat:
    """Asks a model at temperature 0.

    ``read`` and ``written`` count tokens as the endpoint reports them, of unusable answers too.
    """

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint = endpoint
        self._model = model
        self.read = 0
        self.written = 0

    async def ask(
        self,
        system: str,
        user: str,
        schema: Mapping[str, Any],
        parse: Callable[[Any], T],
        deadline: float,
    ) -> T:
        """What `parse` makes of the answer; it raises ValueError for what it does not take.

        Raises as `Endpoint.ask` does.
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
        return await self._endpoint.ask(
            body, lambda answer: self._parsed(answer, parse), most=MOST_BYTES, deadline=deadline
        )

    def _parsed(self, answer: bytes, parse: Callable[[Any], T]) -> T:
        try:
            found = json.loads(answer)
            self._count(found.get("usage"))
            return parse(json.loads(found["choices"][0]["message"]["content"]))
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise AnswerError(f"nothing that can be used: {type(error).__name__}") from None

    def _count(self, usage: Any) -> None:
        """Add what the endpoint says it read and wrote, where those are numbers."""
        if isinstance(usage, dict):
            self.read += _tokens(usage.get("prompt_tokens"))
            self.written += _tokens(usage.get("completion_tokens"))


def _tokens(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else 0
