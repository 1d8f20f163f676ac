"""The stages of a search, as Python knows them; `sql/25_stages.sql` declares what they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["STAGES", "Stage", "columns"]


@dataclass(frozen=True)
class Stage:
    """What people call a stage.

    `order` names the order that it makes of the one before, in tables; `colour` is its own in
    pictures, by its name in :data:`pgrerank.palette.PALETTE`.
    """

    name: str
    label: str
    order: str
    colour: str
    is_blended: bool = True


STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("recall", "recall", "recall, HNSW", "sky"),
        Stage("maxsim_bit", "MaxSim by bits", "+ bits", "orange", is_blended=False),
        Stage("maxsim", "MaxSim", "+ MaxSim", "blue"),
        Stage("cross_encoder", "cross-encoder", "+ cross-encoder", "purple"),
    )
}
"""By name, in the order in which they run."""


def columns() -> dict[str, type]:
    """The columns of a search that stages have: score (float) and rank (int) of each."""
    return {
        f"{name}_{suffix}": kind
        for name in STAGES
        for suffix, kind in (("score", float), ("rank", int))
    }
