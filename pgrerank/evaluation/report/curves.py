"""Line charts over the size of a stage: quality, and milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pgrerank.evaluation.report.bars import RUN_COLOURS, draw_legend
from pgrerank.evaluation.report.drawing import ROW, WIDTH, Drawing, Scale
from pgrerank.evaluation.report.tables import Runs
from pgrerank.evaluation.result import DepthPoint, tuning_of

__all__ = ["draw_depth"]

_MEANINGS = {
    "candidates": "candidates that recall returns",
    "maxsim_top": "documents that MaxSim hands on",
}
_LEFT, _RIGHT = 48.0, WIDTH - 12.0


class _Curve(NamedTuple):
    """One run's points by size, and the sizes that were recommended."""

    colour: str
    points: list[DepthPoint]
    recommended: set[float]


class _Quantity(NamedTuple):
    """What a curve shows of each point: from `low` to `high` over so many pixels."""

    title: str
    value: Callable[[DepthPoint], float]
    low: float
    high: float
    height: float


def draw_depth(runs: Runs, titles: Sequence[str]) -> Drawing:
    """Draw for each setting the first measure over its size, and below it a call's milliseconds.

    A ring marks the recommended size.
    """
    drawing = Drawing("Depth curves")
    draw_legend(drawing, titles)
    measure = next(iter(runs.values()))["measures"][0]
    for setting in dict.fromkeys(name for run in runs.values() for name in tuning_of(run)["depth"]):
        curves = _curves(runs, setting)
        sizes = sorted({point["size"] for curve in curves for point in curve.points})
        if sizes:
            _draw_setting(drawing, setting, measure, curves, sizes)
    return drawing


def _curves(runs: Runs, setting: str) -> list[_Curve]:
    return [
        _Curve(
            RUN_COLOURS.get(name, "blue"),
            tuning_of(run)["depth"].get(setting, []),
            {
                recommendation["value"]
                for recommendation in tuning_of(run)["recommendations"]
                if recommendation["setting"] == setting
            },
        )
        for name, run in runs.items()
    ]


def _draw_setting(
    drawing: Drawing, setting: str, measure: str, curves: Sequence[_Curve], sizes: Sequence[int]
) -> None:
    across = _size_scale(sizes)
    ticks = _size_ticks(sizes, across)
    drawing.title((_LEFT, drawing.height + 16), setting)
    if any(curve.recommended for curve in curves):
        ring = (WIDTH, drawing.height + 16)
        drawing.text(ring, "ring: recommended", colour="muted", anchor="end")
    drawing.height += 20
    points = [point for curve in curves for point in curve.points]
    for quantity in (_quality(measure, points), _time(points)):
        _draw_quantity(drawing, quantity, curves, across, ticks)
    for size in ticks:
        place = (across(size), drawing.height + 16)
        drawing.text(place, str(size), colour="muted", anchor="middle")
    middle = ((_LEFT + _RIGHT) / 2, drawing.height + 34)
    drawing.text(middle, _MEANINGS.get(setting, setting), colour="muted", anchor="middle")
    drawing.height += 34 + ROW


def _quality(measure: str, points: Sequence[DepthPoint]) -> _Quantity:
    values = [point["quality"] for point in points]
    margin = 0.2 * (max(values) - min(values)) or 0.05
    low, high = min(values) - margin, max(values) + margin
    return _Quantity(measure, lambda point: point["quality"], low, high, 150)


def _time(points: Sequence[DepthPoint]) -> _Quantity:
    most = max(point["ms"] for point in points)
    return _Quantity("ms a call", lambda point: point["ms"], 0, 1.2 * most or 1.0, 80)


def _draw_quantity(
    drawing: Drawing,
    quantity: _Quantity,
    curves: Sequence[_Curve],
    across: Scale,
    ticks: Sequence[int],
) -> None:
    top = drawing.height + 1.5 * ROW
    bottom = drawing.height = top + quantity.height
    up = Scale(quantity.low, quantity.high, bottom, top)
    drawing.text((0, top - 13), quantity.title, colour="muted")
    for size in ticks:
        drawing.line([(across(size), top), (across(size), bottom)], "grid")
    for value in up.ticks(4):
        drawing.line([(_LEFT, up(value)), (_RIGHT, up(value))], "grid")
        drawing.text((_LEFT - 6, up(value) + 4), f"{value:g}", colour="muted", anchor="end")
    for curve in curves:
        places = [(across(point["size"]), up(quantity.value(point))) for point in curve.points]
        drawing.line(places, curve.colour, width=2)
        for point, place in zip(curve.points, places, strict=True):
            drawing.dot(place, 2.8, curve.colour)
            if point["size"] in curve.recommended:
                drawing.ring(place, 6.5, "ink")


def _size_scale(sizes: Sequence[int]) -> Scale:
    """A logarithmic scale where sizes are far apart."""
    is_logarithmic = sizes[0] > 0 and sizes[-1] >= 8 * sizes[0]
    return Scale(sizes[0], sizes[-1], _LEFT + 12, _RIGHT - 12, is_logarithmic)


def _size_ticks(sizes: Sequence[int], across: Scale) -> list[int]:
    """The sizes that were measured, as far as there is room for their numbers."""
    kept: list[int] = []
    for size in reversed(sizes):
        if not kept or across(kept[-1]) - across(size) >= 34:
            kept.append(size)
    return kept
