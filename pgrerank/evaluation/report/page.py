"""The report as one HTML page that loads nothing; query and document texts are escaped in it."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2

from pgrerank.evaluation.report import numbers
from pgrerank.evaluation.report.contrast import Contrast, steps
from pgrerank.evaluation.report.plots import plots
from pgrerank.evaluation.report.shown import groups
from pgrerank.evaluation.report.tables import Runs, measure_names, run_title
from pgrerank.evaluation.result import tuning_of
from pgrerank.palette import PALETTE

_SETTING_COLUMNS = 120


def page(runs: Runs, contrast: Contrast) -> str:
    """Render the page."""
    first, *others = runs.values()
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            runs=[(name, run_title(runs, name), run) for name, run in runs.items()],
            first=first,
            last=(others or [first])[-1],
            measure=first["measures"][0],
            measures=measure_names(runs),
            steps=[step for other in others for step in steps(first, other, contrast.gains)],
            found=contrast,
            groups=groups(runs, contrast),
            warnings=_warnings(runs),
            plots=plots(runs, contrast),
            palette=PALETTE,
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "quality": numbers.quality,
        "signed": numbers.signed,
        "ms": numbers.milliseconds,
        "p": numbers.probability,
        "spoken": numbers.spoken,
        "setting": _setting,
        "tuning": tuning_of,
    }
    return environment


def _setting(value: object) -> str:
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return numbers.clipped(text, _SETTING_COLUMNS)


def _warnings(runs: Runs) -> list[str]:
    """Collect the evaluations' warnings, and one if not all queries are in both."""
    texts: dict[str, list[str]] = {}
    for name, run in runs.items():
        for text in run["warnings"]:
            texts.setdefault(text, []).append(name)
    warnings = [
        f"{' and '.join(names)}: {text}" if names[0] else text for text, names in texts.items()
    ]
    if len({frozenset(query["id"] for query in run["per_query"]) for run in runs.values()}) > 1:
        counts = " and ".join(f"{name} has {len(r['per_query'])}" for name, r in runs.items())
        warnings.append(
            f"Not all queries are in both ({counts}): gains are over those that are, means by"
            " measure over all of each."
        )
    return warnings
