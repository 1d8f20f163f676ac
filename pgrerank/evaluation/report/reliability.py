"""The reliability diagram: the share of documents that is relevant, over their relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pgrerank.evaluation.report.bars import RUN_COLOURS, draw_legend
from pgrerank.evaluation.report.drawing import ROW, WIDTH, Drawing, Scale
from pgrerank.evaluation.report.tables import Runs

__all__ = ["draw_reliability"]

_LEFT, _RIGHT, _HEIGHT = 48.0, WIDTH - 12.0, 260.0


def draw_reliability(runs: Runs, titles: Sequence[str]) -> Drawing:
    """Draw a dot for each bin, the larger the more documents; on the diagonal relevance is true."""
    drawing = Drawing("Reliability diagram")
    draw_legend(drawing, titles)
    top = drawing.height + 1.5 * ROW
    across, up = Scale(0, 1, _LEFT + 12, _RIGHT - 12), Scale(0, 1, top + _HEIGHT, top)
    drawing.text((0, top - 13), "share that is relevant", colour="muted")
    for value in across.ticks(5):
        drawing.line([(across(value), up(0)), (across(value), up(1))], "grid")
        drawing.line([(_LEFT, up(value)), (_RIGHT, up(value))], "grid")
        drawing.text((_LEFT - 6, up(value) + 4), f"{value:g}", colour="muted", anchor="end")
        drawing.text((across(value), up(0) + 16), f"{value:g}", colour="muted", anchor="middle")
    drawing.line([(across(0), up(0)), (across(1), up(1))], "muted")
    for name, run in runs.items():
        reliability = run["reliability"]
        if reliability is not None:
            colour = RUN_COLOURS.get(name, "blue")
            bins = reliability["bins"]
            places = [(across(one["relevance"]), up(one["relevant"])) for one in bins]
            drawing.line(places, colour, width=2)
            for one, place in zip(bins, places, strict=True):
                share = one["documents"] / reliability["documents"]
                drawing.dot(place, 3 + 6 * math.sqrt(share), colour)
    middle = ((_LEFT + _RIGHT) / 2, up(0) + 34)
    drawing.text(middle, "relevance told", colour="muted", anchor="middle")
    drawing.height = up(0) + 34 + ROW
    return drawing
