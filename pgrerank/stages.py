"""The stages of a search, as Python knows them; `sql/25_stages.sql` declares what they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LEGS", "STAGES", "Stage", "columns"]


@dataclass(frozen=True)
class Stage:
    """What people call a stage.

    `order` names the order that it makes of the one before, in tables; `colour` is its own in
    pictures, by its name in :data:`pgrerank.palette.PALETTE`. A leg looks for candidates itself;
    the two of them make the pool.
    """

    name: str
    label: str
    order: str
    colour: str
    is_blended: bool = True
    is_leg: bool = False


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("dense", "dense", "dense", "sky", is_leg=True),
        Stage("lexical", "lexical", "+ BM25", "green", is_leg=True),
        Stage("maxsim_bit", "MaxSim by bits", "+ bits", "orange", is_blended=False),
        Stage("maxsim", "MaxSim", "+ MaxSim", "blue"),
        Stage("cross_encoder", "cross-encoder", "+ cross-encoder", "purple"),
    )
}
"""By name, in the order in which they run."""

LEGS = tuple(name for name, stage in STAGES.items() if stage.is_leg)
"""The names of those that recall is made of."""


def columns() -> dict[str, type]:
    """The columns of a search that stages have: score (float) and rank (int) of each."""
    return {
        f"{name}_{suffix}": kind
        for name in STAGES
        for suffix, kind in (("score", float), ("rank", int))
    }
