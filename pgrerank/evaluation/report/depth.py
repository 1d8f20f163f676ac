"""Curves over the size of a stage: what quality it buys, and what time that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgrerank.evaluation.report.style import COLOURS, RUNS, figure, legend
from pgrerank.evaluation.report.tables import Runs
from pgrerank.evaluation.result import Evaluation, tuning_of

__all__ = ["SETTINGS", "depth_figure"]

SETTINGS = {
    "candidates": "candidates that recall returns",
    "maxsim_top": "documents that MaxSim hands on",
}


def depth_figure(runs: Runs, titles: Sequence[str]) -> Figure:
    """For each setting the first measure over its size, and below it a call's milliseconds.

    A ring marks the recommended size.
    """
    settings = list(
        dict.fromkeys(name for run in runs.values() for name in tuning_of(run)["depth"])
    )
    drawn = figure(len(settings) * 3.4 + 0.2 * len(titles))
    ratios = [2.0, 1.1] * len(settings)
    every = list(drawn.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0])
    for above, below, setting in zip(every[::2], every[1::2], settings, strict=True):
        _setting(above, below, runs, setting)
    drawn.align_ylabels(every)
    legend(drawn, titles)
    return drawn


def _setting(above: Axes, below: Axes, runs: Runs, setting: str) -> None:
    for name, run in runs.items():
        _curves(above, below, run, setting, RUNS.get(name, COLOURS["blue"]))
    sizes = sorted(
        {p["size"] for run in runs.values() for p in tuning_of(run)["depth"].get(setting, [])}
    )
    for axes in (above, below):
        axes.grid()
        axes.tick_params(length=0)
        if sizes:
            _size_axis(axes, sizes)
    above.set_title(setting, pad=8)
    if any(
        found["setting"] == setting
        for run in runs.values()
        for found in tuning_of(run)["recommendations"]
    ):
        above.set_title("ring: recommended", loc="right", fontsize=9, color=COLOURS["muted"])
    above.set_ylabel(next(iter(runs.values()))["measures"][0])
    above.margins(y=0.2)
    above.tick_params(axis="x", labelbottom=False)
    below.set_ylabel("ms a call")
    below.margins(y=0.2)
    below.set_ylim(bottom=0)
    below.set_xlabel(SETTINGS.get(setting, setting))


def _curves(above: Axes, below: Axes, run: Evaluation, setting: str, colour: str) -> None:
    points = tuning_of(run)["depth"].get(setting, [])
    chosen = {
        found["value"] for found in tuning_of(run)["recommendations"] if found["setting"] == setting
    }
    for axes, values in (
        (above, [point["quality"] for point in points]),
        (below, [point["ms"] for point in points]),
    ):
        sizes = [point["size"] for point in points]
        axes.plot(
            sizes,
            values,
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.6,
            clip_on=False,
            zorder=3,
        )
        for size, value in zip(sizes, values, strict=True):
            if size in chosen:
                _ring(axes, size, value)


def _ring(axes: Axes, size: int, value: float) -> None:
    axes.plot(
        [size],
        [value],
        color=COLOURS["ink"],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgewidth=1.3,
        clip_on=False,
        zorder=4,
    )


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Ticks at the sizes that were measured, as far as there is room for them."""
    wide = sizes[0] > 0 and sizes[-1] >= 8 * sizes[0]
    if wide:
        axes.set_xscale("log")
        axes.minorticks_off()
    places = {size: math.log(size) if wide else float(size) for size in sizes}
    apart = (places[sizes[-1]] - places[sizes[0]]) / 11
    kept: list[int] = []
    for size in reversed(sizes):
        if not kept or places[kept[-1]] - places[size] >= apart:
            kept.append(size)
    axes.set_xticks(kept, [str(size) for size in kept])
