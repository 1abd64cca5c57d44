"""Collects what one step wants done and puts it into the only safe order.

All rows of a step become one Persist at the front: one transaction, one fsync, and only then
the sends (consensus.md 1.8). Code that produces a vote therefore cannot forget the order, it
can only forget the row, and SafetyRules does not let it.
"""

from shoal.consensus.effects import CancelTimer, Effect, Persist, SetTimer


class Outbox:
    """The effects of the step in progress, and which timers are set."""

    def __init__(self) -> None:
        self._rows: dict[str, bytes | None] = {}
        self._effects: list[Effect] = []
        self.timers: dict[str, int] = {}

    def persist(self, key: str, value: bytes | None) -> None:
        self._rows[key] = value

    def add(self, effect: Effect) -> None:
        self._effects.append(effect)

    def set_timer(self, name: str, at_ms: int) -> None:
        self.timers[name] = at_ms
        self._effects.append(SetTimer(name, at_ms))

    def cancel_timer(self, name: str) -> None:
        if self.timers.pop(name, None) is not None:
            self._effects.append(CancelTimer(name))

    def expired(self, name: str, now_ms: int) -> bool:
        """Whether this timer is really due; a stale firing of one since moved is not."""
        if self.timers.get(name, now_ms + 1) > now_ms:
            return False
        del self.timers[name]
        return True

    def drain(self) -> list[Effect]:
        effects = self._effects
        if self._rows:
            effects = [Persist(tuple(self._rows.items())), *effects]
            self._rows = {}
        self._effects = []
        return effects
