"""How the plots look: colours that colour-blind people tell apart, fonts, bare axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pgrerank.evaluation.report.fonts import Fonts
from pgrerank.stages import STAGES

COLOURS = {
    "ink": "#1c2127",
    "muted": "#5c6670",
    "grid": "#dde1e6",
    "paper": "#ffffff",
    "grey": "#9aa3ad",
    "sky": "#56b4e9",
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "vermilion": "#d55e00",
    "purple": "#aa4f8d",
}
"""Mostly of Okabe and Ito's palette. In HTML each is a CSS variable, `--plot-` and its name."""

ORDERS = {
    "exact_recall": COLOURS["grey"],
    **{name: stage.colour for name, stage in STAGES.items()},
    "blend": COLOURS["green"],
}
RUNS = {"A": COLOURS["grey"], "B": COLOURS["blue"]}
BETTER, WORSE = COLOURS["blue"], COLOURS["vermilion"]

WIDTH = 4.6
"""Inches; a phone shows it at its true size, so that text can be read there."""


@contextmanager
def styled(fonts: Fonts, salt: str) -> Iterator[None]:
    """Matplotlib's settings for as long as a figure is made and saved; then they are as before."""
    with matplotlib.rc_context(
        {
            "font.family": fonts.families,
            "font.size": 9.5,
            "text.color": COLOURS["ink"],
            "text.parse_math": False,
            "axes.labelsize": 9.5,
            "axes.labelcolor": COLOURS["muted"],
            "axes.edgecolor": COLOURS["grid"],
            "axes.linewidth": 0.8,
            "axes.axisbelow": True,
            "axes.unicode_minus": True,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": COLOURS["grid"],
            "ytick.color": COLOURS["grid"],
            "xtick.labelcolor": COLOURS["muted"],
            "ytick.labelcolor": COLOURS["muted"],
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "grid.color": COLOURS["grid"],
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
        }
    ):
        yield


def figure(height: float) -> Figure:
    """An empty figure, so many inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def lay_out(drawn: Figure) -> None:
    """Find room for all parts once, rather than at each save: that is most of a plot's time."""
    if engine := drawn.get_layout_engine():
        engine.execute(drawn)
        drawn.set_layout_engine(None)


def bare(axes: Axes) -> None:
    """For bars that carry their names and values: no left spine, no tick marks."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="y", labelcolor=COLOURS["ink"], labelsize=9.5)
    axes.grid(axis="x")


def legend(drawn: Figure, titles: Sequence[str]) -> None:
    """Says what A and B are; of one evaluation there are no titles."""
    if titles:
        patches = [
            Patch(color=colour, label=title)
            for colour, title in zip(RUNS.values(), titles, strict=True)
        ]
        drawn.legend(handles=patches, loc="outside upper left", handlelength=1, handleheight=0.8)
