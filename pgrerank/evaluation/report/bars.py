"""Bars an order: quality by measure, and time. Of two runs A's and B's are beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgrerank.evaluation.report.numbers import clipped, milliseconds, quality
from pgrerank.evaluation.report.style import COLOURS, ORDERS, RUNS, bare, figure, legend
from pgrerank.evaluation.report.tables import Runs, measure_names
from pgrerank.evaluation.result import Milliseconds, Order

__all__ = ["latency_figure", "stages_figure"]

_NAME_COLUMNS = 20
_BAR = 0.2
"""Inches from one bar to the next."""
_GAP = 0.5
"""Bars' widths between two orders, where each has a bar a run."""


class _Length(NamedTuple):
    """What a bar shows: its length, the text at its end, and how far a whisker reaches."""

    value: float
    text: str
    far: float | None = None


class _Bar(NamedTuple):
    colour: str
    length: _Length
    row: float


class _Bars(NamedTuple):
    """Bars, and the orders' names by the rows that they stand at."""

    bars: list[_Bar]
    names: dict[float, str]

    @property
    def end(self) -> float:
        """The row below the last one."""
        return self.bars[-1].row + 1


class _Panel(NamedTuple):
    title: str
    drawn: _Bars


def stages_figure(runs: Runs, titles: Sequence[str]) -> Figure:
    """A panel a measure: means from 0 to 1."""

    def panel(measure: str) -> _Panel:
        def length(order: Order) -> _Length:
            value = order["measures"].get(measure, 0.0)
            return _Length(value, quality(value))

        return _Panel(measure, _bars(runs, length))

    drawn, every = _panels([panel(name) for name in measure_names(runs)], titles)
    for axes in every:
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axes.tick_params(axis="x", labelbottom=axes is every[-1])
    every[-1].set_xlabel("mean over the queries, from 0 to 1")
    return drawn


def latency_figure(runs: Runs, titles: Sequence[str]) -> Figure:
    """A call up to each stage, and the stage alone: the median, and a line to the 95th centile."""

    def length(time: Milliseconds) -> _Length:
        text = f"{milliseconds(time['p50'])} – {milliseconds(time['p95'])}"
        return _Length(time["p50"], text, time["p95"])

    panels = [
        _Panel("The call up to this stage", _bars(runs, lambda order: length(order["total_ms"]))),
        _Panel("The stage alone", _bars(runs, lambda order: length(order["stage_ms"]))),
    ]
    drawn, every = _panels(panels, titles)
    for axes, panel in zip(every, panels, strict=True):
        reach = max(bar.length.far or 0 for bar in panel.drawn.bars) or 1
        axes.set_xlim(0, reach * 1.36)  # room for the text at the longest one
    every[-1].set_xlabel("ms: bar to the median, line to the 95th percentile")
    return drawn


def _bars(runs: Runs, length: Callable[[Order], _Length]) -> _Bars:
    """The orders of all runs by name, those of one name close together."""
    bars: list[_Bar] = []
    names = {}
    row = 0.0
    for name in dict.fromkeys(order["name"] for run in runs.values() for order in run["orders"]):
        group = [
            (RUNS.get(run) or ORDERS.get(order["stage"], COLOURS["grey"]), length(order))
            for run, evaluation in runs.items()
            for order in evaluation["orders"]
            if order["name"] == name
        ]
        names[row + (len(group) - 1) / 2] = clipped(name, _NAME_COLUMNS)
        bars += [_Bar(*bar, row + place) for place, bar in enumerate(group)]
        row += len(group) + (_GAP if len(runs) > 1 else 0)
    return _Bars(bars, names)


def _panels(panels: Sequence[_Panel], titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    heights = [panel.drawn.end * _BAR for panel in panels]
    drawn = figure(sum(heights) + 0.42 * len(panels) + 0.4 + 0.2 * len(titles))
    every = list(drawn.subplots(len(panels), 1, squeeze=False)[:, 0])
    for axes, panel in zip(every, panels, strict=True):
        axes.set_title(panel.title)
        _draw(axes, panel.drawn)
    legend(drawn, titles)
    return drawn, every


def _draw(axes: Axes, drawn: _Bars) -> None:
    ink = COLOURS["ink"]
    for colour, (value, text, far), row in drawn.bars:
        axes.barh(row, value, height=0.7, color=colour)
        if far is not None:
            axes.plot([value, far], [row, row], color=ink, linewidth=1)
            axes.plot([far], [row], color=ink, marker="|", markersize=6)
        end = max(value, far or 0.0)
        axes.annotate(text, (end, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(list(drawn.names), list(drawn.names.values()))
    axes.set_ylim(drawn.end - 0.4, -0.6)
    bare(axes)
