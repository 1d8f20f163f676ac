"""How an instruction is written into what a model reads."""

from __future__ import annotations

import re

from pgrerank.errors import ModelError

KEPT = 8
"""Instructions whose work is kept ready for each model."""


def with_instruction(template: str, instruction: str, query: str) -> str:
    """Write an instruction and a query into a template."""
    before, _, after = template.partition("{query}")
    return "".join((_fill(before, instruction), query, _fill(after, instruction)))


def template_of(prompt: str) -> str | None:
    """The template that a query's prompt was made by, if it says `Instruct: … Query:`.

    That is how the Qwen3-Embedding, E5-instruct and similar models write it.
    """
    found = re.fullmatch(r"(Instruct: ?).+(\nQuery: ?)", prompt, re.DOTALL)
    return None if found is None else f"{found[1]}{{instruction}}{found[2]}{{query}}"


def prefix(model: str, template: str, instruction: str) -> str:
    """What a template puts before a query; raises ModelError where it puts something after it."""
    before, _, after = template.partition("{query}")
    if after:
        raise ModelError(
            f"model {model}: option instruction_template: an encoder's ends with {{query}}, not"
            f" with {after!r}"
        )
    return _fill(before, instruction)


def no_instruction(model: str) -> ModelError:
    """The error for an instruction to a model that takes none."""
    return ModelError(
        f"model {model} takes no instruction; if it was trained with some, say how they are written"
        " by its option instruction_template"
    )


def _fill(part: str, instruction: str) -> str:
    return part.replace("{instruction}", instruction)
