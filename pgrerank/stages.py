"""The stages of a search, as Python knows them; `sql/25_stages.sql` declares what they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEFAULT_BLEND", "LEGS", "STAGES", "Stage", "columns"]


@dataclass(frozen=True)
class Stage:
    """What people call a stage.

    `order` names the order that it makes of the one before, in tables; `colour` is its own in
    pictures, by its name in :data:`pgrerank.palette.PALETTE`. `weight` is its part in the default
    blend; None where its scores aren't blended. A leg looks for candidates itself; the two of them
    make the pool.
    """

    name: str
    label: str
    order: str
    colour: str
    weight: float | None = None
    is_leg: bool = False

    @property
    def is_blended(self) -> bool:
        """Whether its scores are blended with those of the stages before; else they overrule."""
        return self.weight is not None


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("dense", "dense", "dense", "sky", 0.28, is_leg=True),
        Stage("lexical", "lexical", "+ BM25", "green", 0.14, is_leg=True),
        Stage("maxsim_bit", "MaxSim by bits", "+ bits", "orange"),
        Stage("maxsim", "MaxSim", "+ MaxSim", "blue", 0.28),
        Stage("cross_encoder", "cross-encoder", "+ cross-encoder", "purple", 0.3),
        Stage("listwise", "language model", "+ language model", "vermilion"),
    )
}
"""By name, in the order in which they run."""

DEFAULT_BLEND = {name: stage.weight for name, stage in STAGES.items() if stage.weight is not None}
"""The weights by which scores are blended by default, best without judgements."""

LEGS = tuple(name for name, stage in STAGES.items() if stage.is_leg)
"""The names of those that recall is made of."""


def columns() -> dict[str, type]:
    """The columns of a search that stages have: score (float) and rank (int) of each."""
    return {
        f"{name}_{suffix}": kind
        for name in STAGES
        for suffix, kind in (("score", float), ("rank", int))
    }
