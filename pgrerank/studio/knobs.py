"""What the sliders of the page stand at: stages, sizes and weights of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams

from pgrerank.errors import SettingsError
from pgrerank.evaluation.evaluate import possible_stages
from pgrerank.evaluation.pools import Sizes
from pgrerank.evaluation.variant import Variant
from pgrerank.stages import DEFAULT_BLEND, STAGES

__all__ = ["Knobs", "Slider", "knobs_of", "sliders"]

SIZES = {
    "candidates": ("candidates of each leg", 10, 200),
    "maxsim_bit_top": ("best by bits for MaxSim", 1, 200),
    "maxsim_top": ("best so far to read", 1, 50),
}
"""By setting: what it is, where its slider begins, and to where it reaches at least.

Recall finds no fewer candidates than a search returns, which is ten by default.
"""
_DECIMALS = 3
"""Of a weight: a slider has as many places as pixels."""


@dataclass(frozen=True)
class Knobs:
    """Stages, sizes by setting, and the blend's weights; none of them: later stages overrule."""

    stages: tuple[str, ...]
    sizes: Mapping[str, int]
    blend: Mapping[str, float]

    @property
    def weights(self) -> dict[str, float]:
        """The blend's weights of those stages that are chosen."""
        return {stage: self.blend[stage] for stage in self.stages if stage in self.blend}

    @property
    def running(self) -> list[str]:
        """The stages that a search has by these, as sql/94_call.sql chooses them."""
        if not self.blend:
            return list(self.stages)
        return [
            stage for stage in self.stages if self.blend.get(stage) or not STAGES[stage].is_blended
        ]

    @property
    def known_sizes(self) -> Sizes:
        """The sizes, as known scores are put in order by."""
        return Sizes(
            max(self.sizes["candidates"], SIZES["candidates"][1]),
            self.sizes.get("maxsim_top", 0),
            self.sizes.get("maxsim_bit_top") if "maxsim_bit" in self.running else None,
        )

    def variant(self, own: Knobs, reranker: str) -> Variant:
        """The search that these stand for; what is as the reranker's `own` is left out."""
        changed: dict[str, Any] = {
            name: size for name, size in self.sizes.items() if size != own.sizes.get(name)
        }
        return Variant(
            reranker,
            stages=None if self.stages == own.stages else self.running,
            blend=None if self.blend == own.blend else dict(self.weights),
            **changed,
        )


@dataclass(frozen=True)
class Slider:
    """A slider of the page; `kind` is size or weight."""

    name: str
    label: str
    kind: str
    value: float
    least: float
    most: float
    step: str


def knobs_of(settings: Mapping[str, Any], given: QueryParams | None = None) -> Knobs:
    """The knobs as the reranker's settings have them or, of a form that has any, as that does.

    Raises SettingsError for what is no number.
    """
    possible = tuple(possible_stages(settings, Variant("")))
    sizes = {name: settings[name] for name in SIZES if _has(name, possible)}
    weights = settings["blend"] or DEFAULT_BLEND
    blended = [stage for stage in possible if STAGES[stage].is_blended]
    if given is None or "knobs" not in given:
        blend = {stage: round(float(weights.get(stage, 0)), _DECIMALS) for stage in blended}
        return Knobs(possible, sizes, blend if settings["blend"] else {})
    stages = tuple(stage for stage in possible if stage in given.getlist("stage"))
    blend = {
        stage: round(_number(given, f"weight_{stage}", weights.get(stage, 0)), _DECIMALS)
        for stage in blended
    }
    return Knobs(
        stages,
        {name: int(_number(given, name, size)) for name, size in sizes.items()},
        {} if "overrule" in given else blend,
    )


def _has(size: str, possible: tuple[str, ...]) -> bool:
    stage = {"maxsim_bit_top": "maxsim_bit", "maxsim_top": "cross_encoder"}.get(size)
    return stage is None or stage in possible


def _number(given: QueryParams, name: str, default: float) -> float:
    text = given.get(name)
    if text is None:
        return float(default)
    try:
        value = float(text)
        if 0 <= value <= 100_000:
            return value
    except ValueError:
        pass
    raise SettingsError(f"{name} is {text!r}, expected a number from 0 to 100000")


def sliders(knobs: Knobs, own: Knobs) -> list[Slider]:
    """The sliders of sizes, then those of weights, in the stages' order."""
    blend = knobs.blend or own.blend or {**DEFAULT_BLEND}
    heaviest = max(1.0, *(float(weight or 0) for weight in blend.values()))
    sizes = [
        Slider(name, label, "size", knobs.sizes[name], least, max(reach, own.sizes[name]), "1")
        for name, (label, least, reach) in SIZES.items()
        if name in knobs.sizes
    ]
    possible = [stage for stage in own.stages if STAGES[stage].is_blended]
    return sizes + [
        Slider(
            f"weight_{stage}",
            STAGES[stage].label,
            "weight",
            float(blend.get(stage) or 0),
            0,
            heaviest,
            "any",
        )
        for stage in possible
    ]
