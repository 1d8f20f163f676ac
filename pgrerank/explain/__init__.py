"""Why documents have their ranks: one search explained, with the tokens that matched."""

from pgrerank.explain.explanation import Alignment, ExplainedDocument, Explanation, explanation

__all__ = ["Alignment", "ExplainedDocument", "Explanation", "explanation"]
