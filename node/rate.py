"""A token bucket: so much per second, on average, with bursts of one second's worth or as told."""


class TokenBucket:
    """Bytes, or whatever is counted, that may be spent; time is an argument, in seconds that never
    decrease."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, per_s: float, *, burst: float | None = None) -> None:
        assert per_s > 0, "a rate of nothing never lets anything through"
        self._rate = per_s
        self._burst = self._level = per_s if burst is None else burst
        self._at: float | None = None

    def take(self, size: int, now: float) -> float:
        """Spend `size`; returns how many seconds to wait before it is used.

        The level may go below nothing, so that what is larger than a burst goes through, too, and
        whoever comes next waits for it.
        """
        self._refill(now)
        self._level -= size
        return max(0.0, -self._level / self._rate)

    def wait(self, now: float) -> float:
        """How many seconds `take(1)` would say to wait, without spending it."""
        self._refill(now)
        return max(0.0, (1 - self._level) / self._rate)

    def _refill(self, now: float) -> None:
        earned = 0.0 if self._at is None else self._rate * (now - self._at)
        self._at = now
        self._level = min(self._burst, self._level + earned)
