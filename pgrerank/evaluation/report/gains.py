"""Which queries gain and which lose: all of them as one shape, and the outermost by their texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pgrerank.evaluation.report.contrast import Contrast, Gain
from pgrerank.evaluation.report.drawing import WIDTH, Drawing, Scale
from pgrerank.evaluation.report.numbers import clipped, quality, spoken

__all__ = ["draw_gains"]

_EACH = 6
"""Queries shown by name at either end."""
_TEXT_COLUMNS = 60
_STEPS = 800
"""Steps of the shape at most: more queries than that are thinned evenly."""
_BETTER, _WORSE = "blue", "vermilion"
_SHAPE_HEIGHT = 140.0
_NAMED_HEIGHT = 36.0
_SHAPE_LEFT = 40.0
_SCALE = Scale(0, 1, 8, 322)


def draw_gains(contrast: Contrast, measure: str) -> Drawing:
    """Draw all queries by what they gained, and the outermost by name, from before to after."""
    drawing = Drawing("Gains and losses by query")
    _draw_shape(drawing, contrast, measure)
    groups = _outermost(contrast)
    for title, gains in groups:
        drawing.title((0, drawing.height + 24), title)
        drawing.height += 30
        _draw_named(drawing, gains, contrast.before is not None)
    if groups:
        _draw_axis(drawing, contrast, measure)
    return drawing


def _outermost(contrast: Contrast) -> list[tuple[str, list[Gain]]]:
    """The queries that lost most and gained most; of one order alone the lowest."""
    if contrast.before is None:
        return [("The lowest", contrast.gains[: 2 * _EACH])]
    ends = [("Lost most", contrast.worse[:_EACH]), ("Gained most", contrast.better[:_EACH])]
    return [(title, gains) for title, gains in ends if gains]


def _draw_shape(drawing: Drawing, contrast: Contrast, measure: str) -> None:
    is_single = contrast.before is None
    values = np.array([gain.after if is_single else gain.change for gain in contrast.gains])
    drawing.title((0, 16), _counts(contrast, measure))
    top, bottom = 28.0, 28.0 + _SHAPE_HEIGHT
    most = max(float(np.abs(values).max()), 0.05) * 1.05
    up = Scale(0, 1.02, bottom, top) if is_single else Scale(-most, most, bottom, top)
    for tick in up.ticks(4):
        drawing.line([(_SHAPE_LEFT, up(tick)), (WIDTH, up(tick))], "grid")
        place = (_SHAPE_LEFT - 6, up(tick) + 4)
        drawing.text(place, f"{tick:g}".replace("-", "−"), colour="muted", anchor="end")
    drawing.area(_steps(np.minimum(values, 0), up), _WORSE)
    drawing.area(_steps(np.maximum(values, 0), up), _BETTER)
    drawing.line([(_SHAPE_LEFT, up(0)), (WIDTH, up(0))], "muted")
    drawing.height = bottom


def _steps(
    values: np.ndarray[tuple[int], np.dtype[np.float64]], up: Scale
) -> list[tuple[float, float]]:
    """The outline of a step a query, from the line at 0 and back to it."""
    shown = np.linspace(0, len(values) - 1, min(len(values), _STEPS)).round().astype(int)
    edges = [*shown, len(values)]
    across = Scale(0, len(values), _SHAPE_LEFT, WIDTH)
    points = [(across(0), up(0))]
    for begin, end in pairwise(edges):
        height = up(float(values[begin]))
        points += [(across(begin), height), (across(end), height)]
    return [*points, (across(len(values)), up(0))]


def _counts(contrast: Contrast, measure: str) -> str:
    count = len(contrast.gains)
    if contrast.before is None:
        return f"{measure} of {count} quer{'y' if count == 1 else 'ies'}"
    worse, better = len(contrast.worse), len(contrast.better)
    return f"{measure}: {worse} worse, {count - worse - better} the same, {better} better"


def _draw_named(drawing: Drawing, gains: Sequence[Gain], is_compared: bool) -> None:
    """Draw a line of text a query, and below it a dumbbell from before to after."""
    grid_top = drawing.height
    bottom = grid_top + len(gains) * _NAMED_HEIGHT
    for tick in _SCALE.ticks(5):
        drawing.line([(_SCALE(tick), grid_top), (_SCALE(tick), bottom)], "grid")
    for place, gain in enumerate(gains):
        top = grid_top + place * _NAMED_HEIGHT
        text = clipped(gain.found["query"], _TEXT_COLUMNS) or clipped(gain.found["id"], 40)
        drawing.text((0, top + 12), text)
        middle = top + 23
        colour = _WORSE if gain.change < 0 else _BETTER
        after = (_SCALE(gain.after), middle)
        numbers = quality(gain.after)
        if is_compared:
            before = (_SCALE(gain.before), middle)
            drawing.line([before, after], colour, width=3)
            drawing.dot(before, 3.8, "paper", colour)
            numbers = f"{quality(gain.before)} → {numbers}"
        drawing.dot(after, 4.3, colour)
        drawing.text((_SCALE(1) + 12, middle + 4), numbers, colour="muted")
    drawing.height = bottom


def _draw_axis(drawing: Drawing, contrast: Contrast, measure: str) -> None:
    bottom = drawing.height
    for tick in _SCALE.ticks(5):
        place = (_SCALE(tick), bottom + 15)
        drawing.text(place, f"{tick:.1f}", colour="muted", anchor="middle")
    drawing.text((8, bottom + 34), _caption(contrast, measure), colour="muted")
    drawing.height = bottom + 40


def _caption(contrast: Contrast, measure: str) -> str:
    if contrast.before is None:
        return f"{measure} of the query"
    is_of_two = contrast.gains[0].other is not None
    ends = ("A", "B") if is_of_two else (spoken(contrast.before), spoken(contrast.after))
    return f"{measure}: empty {clipped(ends[0], 20)}, full {clipped(ends[1], 20)}"
