"""Two settings compared blind: who votes sees two orders, and not whose they are."""

from __future__ import annotations

import math
import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from pgrerank.evaluation.variant import Variant

__all__ = ["Contest", "Duel", "sign_test"]

Winner = Literal["a", "b", "same"]


@dataclass(frozen=True)
class Duel:
    """One question, answered by both settings; which of them stands on the left is chance."""

    query: str
    left: Literal["a", "b"]
    identifier: str = field(default_factory=lambda: secrets.token_urlsafe(9))

    def winner(self, vote: str) -> Winner:
        """Whom a vote is for: left, right, or same."""
        if vote == "same":
            return "same"
        other: Literal["a", "b"] = "b" if self.left == "a" else "a"
        return self.left if vote == "left" else other


@dataclass
class Contest:
    """Two settings, the questions still to come, the votes so far; `same` are answered alike."""

    a: Variant
    b: Variant
    questions: list[str]
    identifier: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    votes: list[tuple[str, Winner]] = field(default_factory=list)
    same: int = 0
    duel: Duel | None = None

    def ask(self) -> Duel:
        """Set the two against each other on the next question."""
        self.duel = Duel(self.questions.pop(0), random.choice(("a", "b")))  # noqa: S311
        return self.duel

    def pass_over(self) -> None:
        """Leave out a question that both answer alike."""
        self.same += 1
        if self.duel is None:
            self.questions.pop(0)
        self.duel = None

    def vote(self, duel: str, vote: str) -> bool:
        """Count a vote on the present duel; False for one that is over."""
        if self.duel is None or self.duel.identifier != duel:
            return False
        self.votes.append((self.duel.query, self.duel.winner(vote)))
        self.duel = None
        return True

    @property
    def counts(self) -> Counter[Winner]:
        """How many votes each has."""
        return Counter(winner for _, winner in self.votes)

    @property
    def p(self) -> float:
        """The chance of votes as uneven as these, if the two were equally good."""
        return sign_test(self.counts["a"], self.counts["b"])


def sign_test(one: int, other: int) -> float:
    """The two-sided p of a sign test; ties count for neither."""
    votes, fewer = one + other, min(one, other)
    ways = sum(math.comb(votes, number) for number in range(fewer + 1))
    return min(1.0, ways / 2 ** (votes - 1)) if votes else 1.0
