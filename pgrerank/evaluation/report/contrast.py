"""Compares two orders query by query, of one evaluation or of two."""

from __future__ import annotations

from typing import NamedTuple

from pgrerank.errors import SettingsError
from pgrerank.evaluation.result import Evaluation, QueryFound
from pgrerank.evaluation.significance import Comparison, compare

__all__ = ["Contrast", "Gain", "Step", "contrast", "final", "steps"]


class Gain(NamedTuple):
    """A query's quality in the order before and after; `other` is B's finding of it, if any."""

    found: QueryFound
    before: float
    after: float
    other: QueryFound | None = None

    @property
    def change(self) -> float:
        """What the query gained; below 0 it lost. Rounded, so that equal qualities are equal."""
        return round(self.after - self.before, 9)


class Contrast(NamedTuple):
    """Two orders' names and every query's gain, worst first.

    Of one order alone `before` is None, and the lowest quality comes first.
    """

    before: str | None
    after: str
    gains: list[Gain]

    @property
    def better(self) -> list[Gain]:
        """Queries that gained, the most first."""
        return [gain for gain in reversed(self.gains) if gain.change > 0]

    @property
    def worse(self) -> list[Gain]:
        """Queries that lost, the most first."""
        return [gain for gain in self.gains if gain.change < 0]


class Step(NamedTuple):
    """An order of A against one of B by the first measure, over the queries that both have."""

    before: str
    after: str
    found: Comparison


def final(evaluation: Evaluation) -> str:
    """The last order's name."""
    return evaluation["orders"][-1]["name"]


def contrast(evaluation: Evaluation, other: Evaluation | None) -> Contrast:
    """Compare the last order with the one before it, or B's last order with A's.

    Raises SettingsError where two evaluations can't be compared.
    """
    if other is not None:
        return _between(evaluation, other)
    last = evaluation["orders"][-1]
    after, before = last["name"], last["against"]
    gains = [
        Gain(finding, finding["quality"][before or after], finding["quality"][after])
        for finding in evaluation["per_query"]
    ]
    return Contrast(before, after, _worst_first(gains))


def _between(evaluation: Evaluation, other: Evaluation) -> Contrast:
    _check_alike(evaluation, other)
    theirs = {finding["id"]: finding for finding in other["per_query"]}
    before, after = final(evaluation), final(other)
    gains = [
        Gain(finding, finding["quality"][before], second["quality"][after], second)
        for finding in evaluation["per_query"]
        if (second := theirs.get(finding["id"]))
    ]
    if not gains:
        raise SettingsError(
            f"{_called(evaluation)} and {_called(other)} share none of their"
            f" {len(evaluation['per_query'])} and {len(theirs)} queries: at least one is expected"
        )
    return Contrast(before, after, _worst_first(gains))


def _check_alike(evaluation: Evaluation, other: Evaluation) -> None:
    pairs = {
        "qrels": (evaluation["qrels"], other["qrels"]),
        "first measure": (evaluation["measures"][0], other["measures"][0]),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise SettingsError(
                f"{_called(evaluation)} was measured on the {what} {ours}, {_called(other)} on"
                f" {theirs}: they can't be compared; evaluate both on the same"
            )


def _called(evaluation: Evaluation) -> str:
    label = f" ({evaluation['label']})" if evaluation["label"] else ""
    return f"{evaluation['reranker']}, generation {evaluation['generation']}{label}"


def _worst_first(gains: list[Gain]) -> list[Gain]:
    return sorted(gains, key=lambda gain: (gain.change, gain.after, gain.found["id"]))


def steps(evaluation: Evaluation, other: Evaluation, gains: list[Gain]) -> list[Step]:
    """Compare B with A after each order that both have, and at the end; `gains` are of both.

    p is by the paired randomisation test of :func:`pgrerank.evaluation.compare`.
    """
    theirs = {order["name"] for order in other["orders"]}
    pairs = [(order["name"], order["name"]) for order in evaluation["orders"]]
    pairs = [pair for pair in pairs if pair[0] in theirs]
    if (last := (final(evaluation), final(other))) not in pairs:
        pairs.append(last)
    return [Step(before, after, _compared(before, after, gains)) for before, after in pairs]


def _compared(before: str, after: str, gains: list[Gain]) -> Comparison:
    ours = {gain.found["id"]: gain.found["quality"][before] for gain in gains}
    theirs = {
        gain.other["id"]: gain.other["quality"][after] for gain in gains if gain.other is not None
    }
    return compare(ours, theirs)
