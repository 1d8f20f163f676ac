"""Cuts texts into passages, each of which a model reads at once."""

from pgrerank.passages.cutting import SMALLEST_SIZE, Passage, Tokenise, cut
from pgrerank.passages.reading import Structure, words

__all__ = ["SMALLEST_SIZE", "Passage", "Structure", "Tokenise", "cut", "words"]
