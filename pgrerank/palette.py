"""The colours of pictures, mostly Okabe and Ito's, which colour-blind people tell apart."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PALETTE"]

PALETTE: Mapping[str, tuple[str, str]] = {
    "ink": ("#1c2127", "#e6e9ed"),
    "muted": ("#5c6670", "#9ca6b1"),
    "grid": ("#dde1e6", "#333a42"),
    "paper": ("#ffffff", "#14171b"),
    "grey": ("#9aa3ad", "#77818c"),
    "sky": ("#56b4e9", "#7cc8f2"),
    "blue": ("#0072b2", "#3f9fe0"),
    "orange": ("#e69f00", "#e8ac30"),
    "green": ("#009e73", "#24b58b"),
    "vermilion": ("#d55e00", "#f0803a"),
    "purple": ("#aa4f8d", "#c97bb1"),
}
"""By name: the shade on white paper, and the shade on dark. Pages have them as `--plot-NAME`."""
