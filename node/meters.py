"""What a node counts about itself, for `shoal status`. Plain numbers, no locks: one event loop."""

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Meters:
    """Counters by kind and by reason."""

    started: float = field(default_factory=time.monotonic)
    sent_bytes: Counter[str] = field(default_factory=Counter)
    received_bytes: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    # Chunks and delta logs of checkpoints: served, fetched, repaired, dropped.
    pieces: Counter[str] = field(default_factory=Counter)

    def uptime_seconds(self) -> float:
        """Return how long this node has been running."""
        return time.monotonic() - self.started


class LoopLag:
    """How late the event loop wakes up: the honest measure of "nothing blocks it"."""

    INTERVAL_S = 0.05
    WINDOW = 2400  # two minutes of samples

    def __init__(self) -> None:
        self._samples_ms: deque[float] = deque(maxlen=self.WINDOW)

    async def run(self) -> None:
        """Sample for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self.INTERVAL_S
            await asyncio.sleep(self.INTERVAL_S)
            self._samples_ms.append(max(0.0, loop.time() - due) * 1000)

    def quantiles_ms(self) -> tuple[float, float, float]:
        """Return the median, the 99th percentile and the maximum of the last two minutes."""
        if not self._samples_ms:
            return 0.0, 0.0, 0.0
        ordered = sorted(self._samples_ms)
        return (
            ordered[len(ordered) // 2],
            ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
            ordered[-1],
        )
