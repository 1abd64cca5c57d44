"""A token bucket: so many bytes per second, on average, with bursts of one second's worth."""


class TokenBucket:
    """Bytes that may be spent; time is an argument, in seconds that never decrease."""

    def __init__(self, bytes_per_s: float) -> None:
        assert bytes_per_s > 0, "a rate of nothing never lets anything through"
        self._rate = bytes_per_s
        self._level = bytes_per_s
        self._at: float | None = None

    def take(self, size: int, now: float) -> float:
        """Spend `size` bytes; returns how many seconds to wait before they are used.

        The level may go below nothing, so that what is larger than a burst goes through, too, and
        whoever comes next waits for it.
        """
        earned = 0.0 if self._at is None else self._rate * (now - self._at)
        self._at = now
        self._level = min(self._rate, self._level + earned) - size
        return max(0.0, -self._level / self._rate)
