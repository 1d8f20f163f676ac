"""What an optimised model gained and lost, and whether it may be registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pgrerank.evaluation import Comparison
from pgrerank.evaluation.significance import MEASURE
from pgrerank.optimising.comparing import Scored

LEAST_CORRELATION = 0.9
"""What the rank correlation of scores must be where no judgements say what is lost."""


@dataclass(frozen=True)
class Verdict:
    """An optimised model beside its original: figures, and what speaks against it.

    `size` is the folder's bytes; `comparison` is of nDCG@10 and None without judgements.
    """

    original: str
    scored: Scored
    size: int
    comparison: Comparison | None
    most_loss: float
    has_fast_bfloat16: bool

    @property
    def loss(self) -> float | None:
        """What of nDCG@10 is lost, negative where some is gained; None without judgements."""
        return None if self.comparison is None else -self.comparison.gain

    @property
    def objections(self) -> list[str]:
        """Why it should not take the original's place; none where it may."""
        before, after = self.scored.speeds
        objections = []
        if after <= before:
            why = ", whose CPU multiplies bfloat16 fast" if self.has_fast_bfloat16 else ""
            objections.append(
                f"it scores {after:.3g} pairs/s and the original {before:.3g} on this machine{why}"
            )
        if self.loss is not None and self.loss > self.most_loss:
            objections.append(
                f"it loses {self.loss:.4f} of {MEASURE}, expected {self.most_loss:g} at most"
            )
        if self.loss is None and self.scored.correlation < LEAST_CORRELATION:
            objections.append(
                f"the rank correlation of its scores with the original's is"
                f" {self.scored.correlation:.3f}, expected at least {LEAST_CORRELATION:g}"
            )
        return objections

    def measures(self) -> dict[str, Any]:
        """The figures, as they are stored with the registered model."""
        before, after = self.scored.speeds
        figures: dict[str, Any] = {
            "of": self.original,
            "bytes": self.size,
            "pairs": self.scored.pairs,
            "pairs_per_second_before": round(before, 1),
            "pairs_per_second_after": round(after, 1),
            "rank_correlation": round(self.scored.correlation, 4),
            "largest_difference": round(self.scored.difference, 4),
            "spread": round(self.scored.spread, 4),
        }
        if self.comparison is not None:
            figures |= {"measure": MEASURE, **self.comparison.figures}
        return {"optimise": figures | {"objections": self.objections}}
