"""An explanation as one HTML file, with each document's tokens shaded by how close they are.

It needs no script and loads nothing. Texts are untrusted: they are escaped, and the page's own
Content-Security-Policy lets no script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgrerank.errors import extra
from pgrerank.explain.explanation import (
    Alignment,
    ExplainedDocument,
    Explanation,
    Step,
    shown_time,
    stages_of,
    steps,
    time_parts,
)
from pgrerank.explain.stretches import Heat, Stretch, answers, outside, stretches
from pgrerank.palette import PALETTE
from pgrerank.stages import STAGES

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["LEVELS", "Part", "Piece", "heat_map", "part_colours", "pieces", "timeline"]

LEVELS = 10
"""Shades of heat, from cold to hot."""
_HOVERED = 64
"""Tokens of a query that are marked when one points at what answers them: each is a rule of CSS."""
_BEGINNING = 120


def heat_map(explanation: Explanation) -> str:
    """An explanation as HTML: times, ranks after each stage, and the documents' tokens.

    Raises MissingExtraError where Jinja is not installed.
    """
    environment = _environment()
    times, heat, through = timeline(explanation["times"]), Heat(explanation), stages_of(explanation)
    aligned = [
        document["alignment"] for document in explanation["documents"] if document["alignment"]
    ]
    asked = min(max((len(one["query"]) for one in aligned), default=0), _HOVERED)
    style = environment.get_template("heat_map.css.jinja").render(
        colours=part_colours(), levels=LEVELS, hovered=asked
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("heat_map.html.jinja").render(
        found=explanation,
        style=style,
        style_hash=f"sha256-{digest}",
        times=times,
        total=shown_time(explanation["times"].get("total", 0)),
        stages=through,
        has_relevance=any(one["relevance"] is not None for one in explanation["documents"]),
        has_signals=any(one["signals_score"] is not None for one in explanation["documents"]),
        aligned=bool(aligned),
        levels=LEVELS,
        least=heat.least,
        most=heat.most,
        documents=[_document(document, through, heat) for document in explanation["documents"]],
    )


def part_colours() -> dict[str, tuple[str, str]]:
    """The light and the dark shade of each part of a search's time."""
    names = {
        "encode_query": "grey",
        **{name: stage.colour for name, stage in STAGES.items()},
        "passages": "muted",
        "rest": "grid",
    }
    return {part: PALETTE[colour] for part, colour in names.items()}


def _environment() -> Environment:
    with extra("evaluation", "a heat map"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    return Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


class Part(NamedTuple):
    """A stage's part of the time; `begin` and `width` in per cent of the bar."""

    stage: str
    name: str
    ms: str
    begin: float
    width: float


def timeline(times: Mapping[str, float]) -> list[Part]:
    """A search's milliseconds by stage as the parts of a bar."""
    parts = time_parts(times)
    whole = sum(ms for _, _, ms in parts) or 1
    made, begin = [], 0.0
    for stage, name, ms in parts:
        width = 100 * ms / whole
        made.append(Part(stage, name, shown_time(ms), round(begin, 2), round(width, 2)))
        begin += width
    return made


class Piece(NamedTuple):
    """A piece of a text as the page shows it; no classes for what is between tokens."""

    text: str
    classes: str = ""
    tip: str = ""


class _Answered(NamedTuple):
    asked: str
    token: str
    score: float
    level: int


class _Document(NamedTuple):
    rank: int
    key: str
    passage: tuple[int, int] | None
    beginning: str
    relevance: float | None
    steps: list[Step]
    signals_score: float | None
    maxsim_score: float | None
    answers: list[_Answered]
    total: float
    pieces: list[Piece]
    outside: list[Piece]


def _document(document: ExplainedDocument, through: dict[str, str], heat: Heat) -> _Document:
    text, alignment = document["text"], document["alignment"]
    flat = " ".join(text.split())
    answered = [
        _Answered(*answer, heat.level(answer.score, LEVELS))
        for answer in (answers(alignment) if alignment else [])
    ]
    return _Document(
        rank=document["rank"],
        key=document["key"],
        passage=document["passage"],
        beginning=flat if len(flat) <= _BEGINNING else flat[:_BEGINNING] + "…",
        relevance=document["relevance"],
        steps=list(steps(document, through)),
        signals_score=document["signals_score"],
        maxsim_score=document["scores"]["maxsim"],
        answers=answered,
        total=sum(answer.score for answer in answered),
        pieces=list(pieces(stretches(text, alignment), alignment, heat))
        if alignment
        else [Piece(text)],
        outside=list(pieces(outside(alignment), alignment, heat)) if alignment else [],
    )


def pieces(parts: list[Stretch], alignment: Alignment, heat: Heat) -> Iterator[Piece]:
    """Stretches of a text with their classes (heat, the query's tokens they answer) and tips."""
    for part in parts:
        if part.heat is None:
            yield Piece(part.text)
            continue
        classes = ["t", f"h{heat.level(part.heat, LEVELS)}", f"f{part.closest}"]
        if part.answers:
            classes += ["best", *(f"a{place}" for place in part.answers)]
        yield Piece(part.text, " ".join(classes), _tip(part, alignment))


def _tip(part: Stretch, alignment: Alignment) -> str:
    """The tooltip of a token."""
    if part.answers:
        answered = ", ".join(
            f"“{alignment['query'][place]}” ({alignment['scores'][place]:.3f})"
            for place in part.answers
        )
        return f"“{part.text}” answers {answered}"
    return f"“{part.text}” is closest to “{alignment['query'][part.closest]}” ({part.heat:.3f})"
