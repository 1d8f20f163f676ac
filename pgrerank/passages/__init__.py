"""Cuts texts into passages, each of which a model reads at once."""

from pgrerank.passages.cutting import SMALLEST_SIZE, Passage, Tokenise, cut

__all__ = ["SMALLEST_SIZE", "Passage", "Tokenise", "cut"]
