"""All plots of a report: each one figure, saved as PNG and as SVG for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from pgrerank.evaluation.report.bars import latency_figure, stages_figure
from pgrerank.evaluation.report.contrast import Contrast
from pgrerank.evaluation.report.depth import depth_figure
from pgrerank.evaluation.report.fonts import Fonts, fonts_for
from pgrerank.evaluation.report.gains import label, queries_figure, shown_gains
from pgrerank.evaluation.report.numbers import clipped
from pgrerank.evaluation.report.style import lay_out, styled
from pgrerank.evaluation.report.svg import inline_svg, write_png
from pgrerank.evaluation.report.tables import Runs, run_title
from pgrerank.evaluation.result import tuning_of

_TITLE_COLUMNS = 46


class Plot(NamedTuple):
    """A plot's name, its PNG, and its SVG for the page."""

    name: str
    file: Path
    svg: str


def plots(runs: Runs, found: Contrast, folder: Path) -> Iterator[Plot]:
    """Draw those that there are numbers for."""
    measure = next(iter(runs.values()))["measures"][0]
    gains = [gain for _, group in shown_gains(found) for gain in group]
    texts = [text for gain in gains for text in (label(gain), gain.found["id"])]
    titles = [clipped(run_title(runs, name), _TITLE_COLUMNS) for name in runs if name]
    orders = [order["name"] for run in runs.values() for order in run["orders"]]
    fonts = fonts_for([*texts, *titles, *orders, _OWN])
    titles = [title if fonts.show(title) else title[0] for title in titles]
    drawn = {
        "stages": ("Quality by stage", lambda: stages_figure(runs, titles)),
        "latency": ("Latency by stage", lambda: latency_figure(runs, titles)),
        "queries": ("Gains and losses by query", lambda: queries_figure(found, measure, fonts)),
    }
    if any(tuning_of(run)["depth"] for run in runs.values()):
        drawn["depth"] = ("Depth curves", lambda: depth_figure(runs, titles))
    for name, (description, draw) in drawn.items():
        yield _plot(name, description, draw, fonts, folder)


_OWN = "".join(map(chr, range(32, 127))) + "…–→−"
"""What the plots themselves write."""


def _plot(
    name: str, description: str, draw: Callable[[], Figure], fonts: Fonts, folder: Path
) -> Plot:
    file = folder / f"{name}.png"
    with styled(fonts, salt=name):
        figure = draw()
        lay_out(figure)
        write_png(figure, file)
        return Plot(name, file, inline_svg(figure, name, description))
