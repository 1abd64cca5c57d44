"""The links between simulated nodes: loss, delay, duplication, reordering, partitions and clogs.

A partition is a set of directed links that deliver nothing for a while, so one-way failures are
the general case and a clean split is a special one. A clogged link holds everything back and
then delivers it all at once, which is what a stalled connection does that comes back.
"""

import random

from tests.simulation.plan import Plan

TAIL_MS = 20_000
REORDERED_MS = 1_000
CLOG_MS = 4_000


class Network:
    """Decides when, and how often, a message arrives. All randomness is the schedule's own."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self._plan = plan
        self._random = rng.random
        self._rng = rng
        self._low = plan.delay_ms[0]
        self._span = plan.delay_ms[1] - plan.delay_ms[0] + 1
        self._kind_loss = dict(plan.kind_loss)
        self._blocked: set[tuple[int, int]] = set()
        self._clogged: dict[tuple[int, int], int] = {}
        self._healed = False
        # What happened, for the tests of this instrument.
        self.lost = self.doubled = self.held = self.blocked = self.one_way = self.reordered = 0

    def heal(self) -> None:
        """From here on links are slow, reordering and duplicating at worst, but they deliver."""
        self._healed = True
        self._blocked.clear()

    def partition(self) -> None:
        """A new random partition in place of the last one: split, one-way split, or island."""
        nodes = range(self._plan.nodes)
        island = {node for node in nodes if self._rng.random() < 0.4}
        one_way = self._rng.random() < 0.4
        self._blocked = {
            (source, target)
            for source in nodes
            for target in nodes
            if (source in island) != (target in island) and (source in island or not one_way)
        }
        self.one_way += one_way and bool(self._blocked)
        if self._rng.random() < 0.3:
            self._blocked = set()

    def clog(self, now_ms: int) -> None:
        """One link in each of a few pairs delivers nothing for a while, and then everything."""
        nodes = range(self._plan.nodes)
        for _ in range(self._rng.randint(1, self._plan.validators)):
            link = (self._rng.choice(nodes), self._rng.choice(nodes))
            self._clogged[link] = now_ms + self._rng.randint(500, CLOG_MS)

    def arrivals(self, now_ms: int, source: int, target: int, kind: int) -> tuple[int, ...]:
        """When each copy will arrive; empty when the message is lost."""
        plan, dice = self._plan, self._random
        link = (source, target)
        if self._healed:
            first = now_ms + self._low + int(dice() * self._span)
        else:
            if link in self._blocked:
                self.blocked += 1
                return ()
            if plan.loss and dice() < plan.loss:
                self.lost += 1
                return ()
            if kind in self._kind_loss and dice() < self._kind_loss[kind]:
                self.lost += 1
                return ()
            first = now_ms + self._chaotic_delay()
            opens = self._clogged.get(link, 0)
            if opens > first:
                self.held += 1
                first = opens
        if plan.duplication and dice() < plan.duplication:
            self.doubled += 1
            return first, now_ms + self._low + int(dice() * self._span)
        return (first,)

    def _chaotic_delay(self) -> int:
        plan, dice = self._plan, self._random
        if plan.slow_tail and dice() < plan.slow_tail:
            return int(dice() * TAIL_MS)
        delay = self._low + int(dice() * self._span)
        if plan.reordering and dice() < plan.reordering:
            self.reordered += 1
            delay += int(dice() * REORDERED_MS)
        return delay
