"""What an engine measures of its work, and how much of it fits a time."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pgrerank.models.steps import Steps

BATCH, SLICE = 0.05, 0.25
"""Seconds that a batch should take, which is how long urgent work waits for others; and what is
sorted by length at a time, at most, within which the order of callers is lost."""
SLICE_BATCHES = 5
"""Batches of a slice, at most: callers whose work is in it go on together, and what asks next
should come while others' runs."""
LEAST_TOKENS = 2048
"""Tokens of a batch, at least, however long they take: a device is slow with less."""
FIRST_TOKENS = 2048
"""Tokens of a batch, at most, while nothing is known of the speed."""
NEWS = 0.2
"""How much the latest batch weighs in what is known of the speed."""


class Speeds:
    """How fast each kind of work is run and prepared, and how large its items are.

    It forgets a kind that nobody has any more, as that of an instruction.
    """

    def __init__(self) -> None:
        self._speeds: WeakKeyDictionary[Steps, float | None] = WeakKeyDictionary()
        self._sizes: WeakKeyDictionary[Steps, float] = WeakKeyDictionary()
        self._preparing: WeakKeyDictionary[Steps, float] = WeakKeyDictionary()

    def ran(self, steps: Steps, tokens: int, seconds: float) -> None:
        """Learn from a batch; the first warms up, and tells nothing of the next."""
        if steps not in self._speeds:
            self._speeds[steps] = None
            return
        speed = tokens / max(seconds, 1e-6)
        known = self._speeds[steps] or speed
        self._speeds[steps] = known + (speed - known) * NEWS

    def prepared(self, steps: Steps, items: int, tokens: int, seconds: float) -> None:
        """Learn from a job that was prepared, its waiting for that included."""
        self._sizes[steps] = tokens / items
        known = self._preparing.get(steps, seconds)
        self._preparing[steps] = known + (seconds - known) * NEWS

    def size(self, steps: Steps, items: int) -> int:
        """How many tokens so many items probably have; none, while nothing is known."""
        return int(self._sizes.get(steps, 0) * items)

    def seconds(self, steps: Steps, tokens: float) -> float:
        """How long so many tokens take; nothing, while the speed is not known."""
        speed = self._speeds.get(steps)
        return tokens / (speed * steps.at_once) if speed else 0.0

    def batch(self, steps: Steps) -> int:
        """Tokens of a batch, at most."""
        speed = self._speeds.get(steps)
        wanted = FIRST_TOKENS if speed is None else max(LEAST_TOKENS, int(speed * BATCH))
        return min(wanted, steps.batch_tokens)

    def slice(self, steps: Steps) -> float:
        """Tokens that are sorted by length at a time."""
        speed = self._speeds.get(steps)
        wanted = FIRST_TOKENS if speed is None else speed * steps.at_once * SLICE
        return min(wanted, SLICE_BATCHES * self.batch(steps))

    def delay(self, steps: Steps) -> float:
        """Seconds by which work may end later than what is before it makes it: until it is
        prepared, and the others of its slice are done."""
        return self._preparing.get(steps, 0.0) + self.seconds(steps, self.slice(steps))
