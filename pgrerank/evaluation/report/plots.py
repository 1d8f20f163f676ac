"""All plots of a report."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from pgrerank.evaluation.report.bars import draw_latency, draw_stages
from pgrerank.evaluation.report.contrast import Contrast
from pgrerank.evaluation.report.curves import draw_depth
from pgrerank.evaluation.report.gains import draw_gains
from pgrerank.evaluation.report.numbers import clipped
from pgrerank.evaluation.report.reliability import draw_reliability
from pgrerank.evaluation.report.tables import Runs, run_title
from pgrerank.evaluation.result import tuning_of

__all__ = ["plots"]

_TITLE_COLUMNS = 56


def plots(runs: Runs, contrast: Contrast) -> Mapping[str, Markup]:
    """SVG by name: those that there are numbers for."""
    measure = next(iter(runs.values()))["measures"][0]
    titles = [clipped(run_title(runs, name), _TITLE_COLUMNS) for name in runs if name]
    drawings = {
        "stages": draw_stages(runs, titles),
        "latency": draw_latency(runs, titles),
        "queries": draw_gains(contrast, measure),
    }
    if any(tuning_of(run)["depth"] for run in runs.values()):
        drawings["depth"] = draw_depth(runs, titles)
    if any(run["reliability"] for run in runs.values()):
        drawings["reliability"] = draw_reliability(runs, titles)
    return {name: drawing.svg() for name, drawing in drawings.items()}
