"""Formats numbers and long texts for the report."""

from __future__ import annotations

import unicodedata

__all__ = ["clipped", "milliseconds", "probability", "quality", "signed", "spoken"]


def quality(value: float) -> str:
    """Format a measure, to three places."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """Format a change of a measure with its sign, a true minus; a zero has none."""
    text = f"{value:+.3f}"
    return text[1:] if text.strip("+-0.") == "" else text.replace("-", "−")


def milliseconds(value: float) -> str:
    """Milliseconds, to three digits at most."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def probability(value: float) -> str:
    """Format a p-value, to three places."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def spoken(order: str) -> str:
    """An order's name within a sentence: `+ MaxSim` is MaxSim."""
    return order.removeprefix("+ ")


def clipped(text: str, columns: int) -> str:
    """Cut a text to one line of so many columns; East Asian characters take two."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    width = 0
    for place, character in enumerate(line):
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > columns:
            return line[: max(place - 1, 0)].rstrip() + "…"
    return line
