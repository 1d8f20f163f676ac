"""How the report writes numbers, and long texts."""

from __future__ import annotations

import unicodedata

__all__ = ["clipped", "milliseconds", "probability", "quality", "signed", "spoken"]


def quality(value: float) -> str:
    """A measure, to three places."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A change of a measure, with its sign, a true minus; nothing but noughts has none."""
    text = f"{value:+.3f}"
    return text[1:] if text.strip("+-0.") == "" else text.replace("-", "−")


def milliseconds(value: float) -> str:
    """Three digits are enough."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def probability(value: float) -> str:
    """A p-value, to three places."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def spoken(order: str) -> str:
    """An order's name within a sentence: `+ MaxSim` is MaxSim."""
    return order.removeprefix("+ ")


def clipped(text: str, columns: int) -> str:
    """On one line and so wide at most, where East Asian characters take two columns."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    width = 0
    for place, character in enumerate(line):
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > columns:
            return line[: max(place - 1, 0)].rstrip() + "…"
    return line
