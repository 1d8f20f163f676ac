"""A plot as SVG that stands within HTML: the browser brings the fonts, the page the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

__all__ = ["ROW", "WIDTH", "Drawing", "Scale"]

WIDTH = 440
"""Pixels; a phone shows a plot at nearly its true size, so that its texts can be read there."""
ROW = 19
"""Pixels from one line of text, or one bar, to the next."""

Point = tuple[float, float]


class Scale(NamedTuple):
    """Where values stand: `low` at the pixel `start`, `high` at the pixel `end`."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The value's place in pixels."""
        low, high, value = map(
            math.log if self.is_logarithmic else float, (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (value - low) / ((high - low) or 1.0)

    def ticks(self, at_most: int = 6) -> list[float]:
        """Round values within the scale: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / at_most or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


class Drawing:
    """Collects a plot's elements; places are in pixels from the top left.

    Colours are names of :data:`pgrerank.palette.PALETTE`. Texts are escaped.
    """

    def __init__(self, description: str) -> None:
        self.height = 0.0
        self._description = description
        self._elements: list[Markup] = []

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle."""
        self._add(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="{}"/>',
            *(x, y, max(width, 0), height, _style(fill=colour)),
        )

    def area(self, points: Sequence[Point], colour: str) -> None:
        """A filled polygon."""
        self._add('<polygon points="{}" style="{}"/>', _joined(points), _style(fill=colour))

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        """A line from point to point."""
        self._add(
            '<polyline points="{}" style="{};fill:none;stroke-width:{:g}"/>',
            *(_joined(points), _style(stroke=colour), width),
        )

    def dot(self, at: Point, radius: float, fill: str, stroke: str | None = None) -> None:
        """A disc, with a rim if `stroke` is given."""
        self._add(
            '<circle cx="{:.1f}" cy="{:.1f}" r="{:g}" style="{}"/>',
            *(*at, radius, _style(fill=fill) + (f";{_style(stroke=stroke)}" if stroke else "")),
        )

    def ring(self, at: Point, radius: float, colour: str) -> None:
        """A circle with nothing in it."""
        self._add(
            '<circle cx="{:.1f}" cy="{:.1f}" r="{:g}" style="{};fill:none;stroke-width:1.5"/>',
            *(*at, radius, _style(stroke=colour)),
        )

    def text(
        self, at: Point, text: str, *, colour: str = "ink", anchor: str = "start", size: float = 12
    ) -> None:
        """A text on the base line `at`, which is its start, its middle or its end."""
        self._add(
            '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-size="{:g}" style="{}">{}</text>',
            *(*at, anchor, size, _style(fill=colour), text),
        )

    def title(self, at: Point, text: str) -> None:
        """The heading of a part of the plot."""
        self.text(at, text, size=13.5)

    def svg(self) -> Markup:
        """The whole, which scales with its container; the description serves screen readers."""
        whole = '<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {:.0f}">{}</svg>'
        elements = Markup("\n").join(self._elements)
        return Markup(whole).format(  # noqa: S704 - a constant
            self._description, WIDTH, self.height, elements
        )

    def _add(self, element: str, *values: object) -> None:
        self._elements.append(Markup(element).format(*values))  # noqa: S704 - a constant


def _style(**colours: str) -> str:
    return ";".join(f"{name}:var(--plot-{colour})" for name, colour in colours.items())


def _joined(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
