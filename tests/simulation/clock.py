"""A node's own clock: it starts anywhere, runs fast or slow, jumps ahead, and stands still.

What a process reads never goes backwards, as the contract of the monotonic clock says. A new
process may start at any value again.
"""

import random

MILLION = 1_000_000


class Clock:
    """Integers only, so that every machine computes the same times."""

    def __init__(self, rng: random.Random, drift_ppm: int) -> None:
        self._rng = rng
        self._speed = MILLION + rng.randint(-drift_ppm, drift_ppm)
        # At the true time `_true` the clock shows `_local`; before that it stands still there.
        self._true = 0
        self._local = 0

    def restart(self, now_ms: int) -> None:
        """A new process: its clock starts somewhere else, before or after the old one's."""
        self._true, self._local = now_ms, self._rng.randint(0, 1_000_000)

    def read(self, now_ms: int) -> int:
        """What the process reads at this true time."""
        elapsed = now_ms - self._true
        return self._local + elapsed * self._speed // MILLION if elapsed > 0 else self._local

    def when(self, local_ms: int, now_ms: int) -> int:
        """The first true time, not before now, at which the clock shows at least `local_ms`."""
        if local_ms <= self._local:
            return now_ms
        elapsed = -(-(local_ms - self._local) * MILLION // self._speed)
        return max(now_ms, self._true + elapsed)

    def jump(self, now_ms: int, ahead_ms: int) -> None:
        """The clock is set forward."""
        local = self.read(now_ms) + ahead_ms
        self._true, self._local = max(now_ms, self._true), local

    def stall(self, now_ms: int, for_ms: int) -> None:
        """The clock stands still for a while, and then goes on from there."""
        self._local = self.read(now_ms)
        self._true = max(self._true, now_ms + for_ms)
