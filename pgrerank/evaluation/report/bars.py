"""Bar charts of quality and latency, one bar for each order; two runs stand side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pgrerank.evaluation.report.drawing import ROW, WIDTH, Drawing, Scale
from pgrerank.evaluation.report.numbers import clipped, milliseconds, quality
from pgrerank.evaluation.report.tables import Runs, measure_names
from pgrerank.evaluation.result import Milliseconds, Order
from pgrerank.stages import STAGES

__all__ = ["RUN_COLOURS", "draw_latency", "draw_legend", "draw_stages"]

RUN_COLOURS = {"A": "grey", "B": "blue"}
_ORDER_COLOURS: Mapping[str, str] = {
    "exact_recall": "grey",
    **{name: stage.colour for name, stage in STAGES.items()},
    "chosen": "orange",
}
_NAME_COLUMNS = 20
_LEFT = 132.0
"""Pixels: where bars begin, right of the orders' names."""
_TEXT = 84.0
"""Pixels that the longest text after a bar takes."""


class _Bar(NamedTuple):
    """A bar's length, the text at its end, and how far a whisker reaches."""

    colour: str
    value: float
    text: str
    far: float | None = None


class _Axis(NamedTuple):
    """What the lengths of bars mean; `caption` is written below it."""

    scale: Scale
    format: Callable[[float], str]
    caption: str = ""
    is_numbered: bool = True


def draw_stages(runs: Runs, titles: Sequence[str]) -> Drawing:
    """Draw the mean of each measure after each order, from 0 to 1."""
    drawing = Drawing("Quality by stage")
    draw_legend(drawing, titles)
    scale = Scale(0, 1, _LEFT, WIDTH - 48)
    measures = measure_names(runs)
    for measure in measures:

        def bar(colour: str, order: Order, measure: str = measure) -> _Bar:
            value = order["measures"].get(measure, 0.0)
            return _Bar(colour, value, quality(value))

        is_last = measure == measures[-1]
        caption = "mean over the queries, from 0 to 1" if is_last else ""
        _draw_bars(
            drawing, measure, _bars(runs, bar), _Axis(scale, "{:.1f}".format, caption, is_last)
        )
    return drawing


def draw_latency(runs: Runs, titles: Sequence[str]) -> Drawing:
    """Draw a call's time up to each stage, and the stage's own: median, and 95th percentile."""
    drawing = Drawing("Latency by stage")
    draw_legend(drawing, titles)

    def part(title: str, time: Callable[[Order], Milliseconds], caption: str = "") -> None:
        def bar(colour: str, order: Order) -> _Bar:
            median, far = time(order)["p50"], time(order)["p95"]
            return _Bar(colour, median, f"{milliseconds(median)} – {milliseconds(far)}", far)

        bars = _bars(runs, bar)
        reach = max(max(bar.far or 0, bar.value) for group in bars.values() for bar in group) or 1.0
        scale = Scale(0, reach, _LEFT, WIDTH - _TEXT)
        _draw_bars(drawing, title, bars, _Axis(scale, "{:g}".format, caption))

    part("The call up to this stage", lambda order: order["total_ms"])
    part(
        "The stage alone",
        lambda order: order["stage_ms"],
        "ms: bar to the median, line to the 95th percentile",
    )
    return drawing


def draw_legend(drawing: Drawing, titles: Sequence[str]) -> None:
    """Say what A and B are; of one evaluation there are no titles."""
    for colour, title in zip(RUN_COLOURS.values(), titles, strict=False):
        drawing.box(0, drawing.height + 4, 11, 11, colour)
        drawing.text((18, drawing.height + 14), title)
        drawing.height += ROW
    drawing.height += 8 if titles else 0


def _bars(runs: Runs, bar: Callable[[str, Order], _Bar]) -> dict[str, list[_Bar]]:
    """Each order's bars by its name, one a run that has the order."""
    names = dict.fromkeys(order["name"] for run in runs.values() for order in run["orders"])
    return {
        name: [
            bar(RUN_COLOURS.get(run) or _ORDER_COLOURS.get(order["stage"], "grey"), order)
            for run, evaluation in runs.items()
            for order in evaluation["orders"]
            if order["name"] == name
        ]
        for name in names
    }


def _draw_bars(drawing: Drawing, title: str, bars: Mapping[str, list[_Bar]], axis: _Axis) -> None:
    """Draw one part of the plot below what is there already."""
    most_bars = max(map(len, bars.values()))
    gap = ROW / 2 if most_bars > 1 else 0
    top = drawing.height + 24
    bottom = top + sum(len(group) * ROW + gap for group in bars.values())
    drawing.title((_LEFT, top - 8), title)
    _draw_axis(drawing, axis, top, bottom)
    middle = top + (ROW + gap) / 2
    for name, group in bars.items():
        place = middle + (len(group) - 1) * ROW / 2 + 4
        drawing.text((_LEFT - 6, place), clipped(name, _NAME_COLUMNS), anchor="end", size=12.5)
        for bar in group:
            _draw_bar(drawing, bar, axis.scale, middle)
            middle += ROW
        middle += gap


def _draw_axis(drawing: Drawing, axis: _Axis, top: float, bottom: float) -> None:
    for tick in axis.scale.ticks(5):
        place = axis.scale(tick)
        drawing.line([(place, top), (place, bottom)], "grid")
        if axis.is_numbered:
            number = axis.format(tick)
            drawing.text((place, bottom + 15), number, colour="muted", anchor="middle")
    drawing.line([(_LEFT, bottom), (WIDTH, bottom)], "grid")
    drawing.height = bottom + (20 if axis.is_numbered else 0)
    if axis.caption:
        place = (_LEFT + WIDTH) / 2
        drawing.text((place, drawing.height + 14), axis.caption, colour="muted", anchor="middle")
        drawing.height += ROW


def _draw_bar(drawing: Drawing, bar: _Bar, scale: Scale, middle: float) -> None:
    drawing.box(_LEFT, middle - 6.5, scale(bar.value) - _LEFT, 13, bar.colour)
    end = scale(max(bar.value, bar.far or 0.0))
    if bar.far is not None:
        drawing.line([(scale(bar.value), middle), (end, middle)], "ink")
        drawing.line([(end, middle - 3), (end, middle + 3)], "ink")
    drawing.text((end + 6, middle + 4), bar.text)
