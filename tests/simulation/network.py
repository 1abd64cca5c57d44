"""The links between simulated nodes: loss, delay, duplication, reordering and partitions.

A partition is a set of directed links that deliver nothing for a while, so one-way failures are
the general case and a clean split is a special one.
"""

import random

from tests.simulation.plan import Plan

TAIL_MS = 20_000


class Network:
    """Decides when, and how often, a message arrives. All randomness is the schedule's own."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self._plan = plan
        self._rng = rng
        self._blocked: set[tuple[int, int]] = set()
        self._healed = False

    def heal(self) -> None:
        """From here on links are slow, reordering and duplicating at worst, but they deliver."""
        self._healed = True
        self._blocked.clear()

    def partition(self) -> None:
        """A new random partition in place of the last one: split, one-way split, or island."""
        nodes = range(self._plan.validators)
        island = {node for node in nodes if self._rng.random() < 0.4}
        one_way = self._rng.random() < 0.4
        self._blocked = {
            (source, target)
            for source in nodes
            for target in nodes
            if (source in island) != (target in island) and (source in island or not one_way)
        }
        if self._rng.random() < 0.3:
            self._blocked = set()

    def arrivals(self, source: int, target: int) -> list[int]:
        """Delays in ms of each copy that will arrive; empty when the message is lost."""
        plan, rng = self._plan, self._rng
        if (source, target) in self._blocked:
            return []
        if not self._healed and plan.loss and rng.random() < plan.loss:
            return []
        copies = 2 if plan.duplication and rng.random() < plan.duplication else 1
        return [self._delay() for _ in range(copies)]

    def _delay(self) -> int:
        if not self._healed and self._plan.slow_tail and self._rng.random() < self._plan.slow_tail:
            return self._rng.randint(0, TAIL_MS)
        return self._rng.randint(*self._plan.delay_ms)
