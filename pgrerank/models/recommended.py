"""Models worth a try, of each kind: one list for the command and for the documentation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from pgrerank.models.spec import Kind, Loader

LANGUAGES = ("en", "zh", "multilingual", "code")


@dataclass(frozen=True)
class Recommended:
    """A model, what its makers say of it, and how to register it.

    ``window`` is in tokens; ``languages`` are of LANGUAGES. ``was_run`` says whether its weights
    were run by pgrerank's own demo; the others are taken from what their makers publish.
    """

    name: str
    kind: Kind
    source: str
    parameters: str
    licence: str
    languages: list[str]
    window: int
    prompt: str
    loader: Loader | None = None
    is_decoder: bool = False
    was_run: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that registers it."""
        words = ["pgrerank", "models", "add", self.name, "--kind", self.kind]
        words += ["--source", self.source]
        if self.loader is not None:
            words += ["--loader", self.loader]
        if self.options:
            words += ["--options", json.dumps(self.options, ensure_ascii=False)]
        return shlex.join(words)


def recommended(kind: str | None = None, language: str | None = None) -> list[Recommended]:
    """The models of a kind that read a language, or all; a multilingual one reads all but code."""
    text = files("pgrerank.models").joinpath("recommended.json").read_text("utf-8")
    models = [Recommended(**one) for one in json.loads(text)]
    return [
        model
        for model in models
        if kind in (None, model.kind)
        and (
            language in (None, *model.languages)
            or (language != "code" and "multilingual" in model.languages)
        )
    ]
