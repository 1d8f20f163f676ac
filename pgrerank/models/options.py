"""The options of a model spec, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgrerank.errors import ModelError
from pgrerank.models.spec import ModelSpec

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Options:
    """Typed access to ``spec.options``; raises ModelError for a name not in ``known``."""

    def __init__(self, spec: ModelSpec, known: frozenset[str]) -> None:
        self._spec = spec
        unknown = sorted(set(spec.options) - known)
        if unknown:
            raise ModelError(
                f"model {spec.name}: loader {spec.loader} has no option {unknown[0]!r};"
                f" it has {', '.join(sorted(known))}"
            )

    def count(self, name: str) -> int | None:
        """Give a whole number above zero, or None."""
        value = self._spec.options.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise self._wrong(name, "a whole number above zero")
        return value

    def text(self, name: str) -> str | None:
        """Give a text that isn't empty, or None."""
        value = self._spec.options.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            raise self._wrong(name, "a text")
        return value

    def devices(self) -> list[str]:
        """Give the devices that are named, with commas between them, or none."""
        return [name.strip() for name in (self.text("device") or "").split(",") if name.strip()]

    def dtype(self) -> str:
        """Give one of :data:`DTYPES`."""
        value = self.text("dtype") or "auto"
        if value not in DTYPES:
            raise self._wrong("dtype", f"one of {', '.join(DTYPES)}")
        return value

    def prompts(self) -> dict[str, str] | None:
        """Give the texts put before a query and a document, or None for the model's own."""
        value: Any = self._spec.options.get("prompts")
        if value is None:
            return None
        if not isinstance(value, Mapping) or not set(value) <= {"query", "document"}:
            raise self._wrong("prompts", "a text for query, document, or both")
        if not all(isinstance(text, str) for text in value.values()):
            raise self._wrong("prompts", "texts")
        return dict(value)

    def prices(self) -> tuple[float, float] | None:
        """Give what a million tokens read and written cost, or None."""
        value: Any = self._spec.options.get("prices")
        if value is None:
            return None
        numbers: list[Any] = []
        if isinstance(value, Mapping):
            numbers = [value.get(name) for name in ("read", "written")]
        if not numbers or not all(type(n) in (int, float) and n >= 0 for n in numbers):
            raise self._wrong("prices", 'an object such as {"read": 0.15, "written": 0.6}')
        return float(numbers[0]), float(numbers[1])

    def template(self) -> str | None:
        """Give the text by which an instruction and a query are made one, or None."""
        value = self.text("instruction_template")
        if value is not None and not ("{instruction}" in value and "{query}" in value):
            raise self._wrong("instruction_template", "a text with {instruction} and {query}")
        return value

    def _wrong(self, name: str, wanted: str) -> ModelError:
        found = self._spec.options[name]
        return ModelError(
            f"model {self._spec.name}: option {name}: expected {wanted}, not {found!r}"
        )
