"""Names what is measured: a reranker, a generation of it, or one with other settings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from pgrerank.errors import SettingsError

__all__ = ["Variant", "parse_variant"]

_FORM = re.compile(r"(?P<name>[^@:]+)(?:@(?P<generation>\d+))?(?::(?P<settings>.+))?")
_NUMBERS = ("candidates", "maxsim_bit_top", "maxsim_top")
_FRACTIONS = ("early_exit", "min_relevance")
_NAMES = (*_NUMBERS, *_FRACTIONS, "stages", "blend", "timeout")


@dataclass(frozen=True)
class Variant:
    """A reranker as it is asked; None for what is as the reranker has it.

    The cross-encoder reads the whole head unless `early_exit` is given, and no document is left out
    unless `min_relevance` is: what is measured is then every order, and not a part of it.
    """

    reranker: str
    generation: int | None = None
    candidates: int | None = None
    maxsim_bit_top: int | None = None
    maxsim_top: int | None = None
    early_exit: float | None = 0.0
    min_relevance: float | None = 0.0
    stages: list[str] | None = None
    blend: dict[str, float] | None = None
    timeout: str = "1 minute"
    label: str = field(default="", compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The search's arguments by name."""
        names = ("generation", *_NAMES)
        return {name: getattr(self, name) for name in names}

    @property
    def text(self) -> str:
        """The text that `parse_variant` makes this of."""
        usual = Variant(self.reranker)
        given = {name: getattr(self, name) for name in _NAMES}
        parts = [
            f"{name}={_text(value)}"
            for name, value in given.items()
            if value is not None and value != getattr(usual, name)
        ]
        generation = "" if self.generation is None else f"@{self.generation}"
        return f"{self.reranker}{generation}" + (":" + ",".join(parts) if parts else "")


def parse_variant(text: str) -> Variant:
    """Parse `NAME`, `NAME@GENERATION`, `NAME:candidates=50,stages=dense+maxsim`, or both.

    `blend` is JSON: `NAME:blend={"maxsim":1,"cross_encoder":2}`. Raises SettingsError for another.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise SettingsError(
            f"{text!r} names no reranker: NAME, NAME@GENERATION or NAME:setting=value,… is expected"
        )
    given: dict[str, Any] = {}
    # A comma within braces is JSON's.
    for part in re.split(r",(?![^{]*\})", match["settings"] or ""):
        if part:
            name, _, value = part.partition("=")
            given[name.strip()] = _value(text, name.strip(), value.strip())
    generation = None if match["generation"] is None else int(match["generation"])
    return Variant(match["name"], generation, label=text, **given)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, separators=(",", ":"))
    return "+".join(value) if isinstance(value, list) else str(value)


def _value(text: str, name: str, value: str) -> Any:
    if name not in _NAMES:
        raise SettingsError(f"{text!r}: no setting {name!r}; there are {', '.join(_NAMES)}")
    try:
        if name in _NUMBERS:
            return int(value)
        if name in _FRACTIONS:
            return float(value)
        if name == "blend":
            return dict(json.loads(value))
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{text!r}: {name} is {value!r}: {error}") from error
    return value.split("+") if name == "stages" else value
