"""Which queries gain and which lose: all of them as one shape, and the outermost by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgrerank.evaluation.report.contrast import Contrast, Gain
from pgrerank.evaluation.report.fonts import Fonts
from pgrerank.evaluation.report.numbers import clipped, quality, spoken
from pgrerank.evaluation.report.style import BETTER, COLOURS, WORSE, bare, figure

__all__ = ["label", "queries_figure", "shown_gains"]

_EACH = 6
"""Queries shown at either end."""
_COLUMNS = 60
_DRAWN = 800
"""Steps of the shape at most: more queries than that are thinned evenly."""


def label(gain: Gain) -> str:
    """The query's text, on one line."""
    return clipped(gain.found["query"], _COLUMNS)


def shown_gains(found: Contrast) -> list[tuple[str, list[Gain]]]:
    """Those named in the plot: the worst and the best; of one order the lowest."""
    if found.before is None:
        return [("The lowest", found.gains[: 2 * _EACH])]
    ends = [("Lost most", found.worse[:_EACH]), ("Gained most", found.better[:_EACH])]
    return [(title, gains) for title, gains in ends if gains]


def queries_figure(found: Contrast, measure: str, fonts: Fonts) -> Figure:
    """All queries by what they gained, and the ends of that by name, from before to after.

    A query whose text has characters that no font here has is named by its id, or else its place.
    """
    groups = shown_gains(found)
    heights = [1.5, *(len(gains) * 0.36 + 0.1 for _, gains in groups)]
    drawn = figure(sum(heights) + 0.5 * len(heights) + 0.3)
    every = drawn.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _shape(every[0], found, measure)
    for axes, (title, gains) in zip(every[1:], groups, strict=True):
        axes.set_title(title)
        _named(axes, gains, found, fonts)
        axes.tick_params(axis="x", labelbottom=axes is every[-1])
    every[-1].set_xlabel(_unit(found, measure) if groups else "queries")
    return drawn


def _unit(found: Contrast, measure: str) -> str:
    if found.before is None:
        return f"{measure} of the query"
    ends = ("A", "B") if found.gains[0].other else (spoken(found.before), spoken(found.after))
    return f"{measure}: empty {clipped(ends[0], 20)}, full {clipped(ends[1], 20)}"


def _shape(axes: Axes, found: Contrast, measure: str) -> None:
    one = found.before is None
    values = np.array([gain.after if one else gain.change for gain in found.gains])
    places = np.linspace(0, len(values) - 1, min(len(values), _DRAWN)).round().astype(int)
    edges = np.append(places, len(values))
    for part, colour in ((np.minimum(values, 0), WORSE), (np.maximum(values, 0), BETTER)):
        axes.stairs(part[places], edges, fill=True, color=colour, linewidth=0)
    axes.axhline(0, color=COLOURS["muted"], linewidth=0.8)
    axes.set_xlim(0, len(values))
    axes.set_xticks([])
    most = max(float(np.abs(values).max()), 0.05) * 1.1
    axes.set_ylim((0, 1.05) if one else (-most, most))
    bare(axes)
    axes.grid(visible=False, axis="x")
    axes.grid(axis="y")
    axes.tick_params(axis="y", labelcolor=COLOURS["muted"], labelsize=9)
    axes.set_title(_counts(found, measure))


def _counts(found: Contrast, measure: str) -> str:
    count = len(found.gains)
    if found.before is None:
        return f"{measure} of {count} quer{'y' if count == 1 else 'ies'}"
    worse, better = len(found.worse), len(found.better)
    return f"{measure}: {worse} worse, {count - worse - better} the same, {better} better"


def _named(axes: Axes, gains: Sequence[Gain], found: Contrast, fonts: Fonts) -> None:
    for row, gain in enumerate(gains):
        colour = WORSE if gain.change < 0 else BETTER
        axes.plot([gain.before, gain.after], [row, row], color=colour, linewidth=3)
        axes.plot([gain.after], [row], color=colour, marker="o", markersize=6.5)
        text = quality(gain.after)
        if found.before is not None:
            axes.plot(
                [gain.before],
                [row],
                color=colour,
                marker="o",
                markersize=6.5,
                markerfacecolor=COLOURS["paper"],
                markeredgewidth=1.4,
            )
            text = f"{quality(gain.before)} → {text}"
        name = axes.text(0, row - 0.44, _name(gain, found, fonts), va="center", fontsize=9)
        name.set_in_layout(False)  # a wide one is cut at the edge, rather than make all else small
        axes.text(1.04, row, text, va="center", fontsize=9, color=COLOURS["muted"])
    axes.set_ylim(len(gains) - 0.6, -0.85)
    axes.set_xlim(-0.02, 1.42)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_yticks([])
    bare(axes)


def _name(gain: Gain, found: Contrast, fonts: Fonts) -> str:
    for text in (label(gain), clipped(gain.found["id"], _COLUMNS)):
        if text and fonts.show(text):
            return text
    return f"query {found.gains.index(gain) + 1} of {len(found.gains)}"
