"""True time: one heap of what happens when, with a random order among equal times, and the trace.

The trace is a hash over everything that happened, in order. Equal plans give equal traces, on
every machine and every version of Python.
"""

import hashlib
import heapq
import random
import struct
from collections.abc import Callable
from typing import Any

_ENTRY = struct.Struct(">QBB")


class Clockwork:
    """Runs what is due. Times are whole milliseconds."""

    def __init__(self, rng: random.Random) -> None:
        self.now_ms = 0
        self.events = 0
        self._random = rng.random
        # The fraction of the key is the random tie-break; the counter keeps it a total order.
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._counter = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def at(self, time_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        self._counter += 1
        heapq.heappush(self._heap, (time_ms + self._random(), self._counter, action, arguments))

    def __bool__(self) -> bool:
        return bool(self._heap)

    def next(self) -> None:
        """Let the next thing happen."""
        key, _, action, arguments = heapq.heappop(self._heap)
        self.now_ms = int(key)
        self.events += 1
        action(*arguments)

    def run_until(self, end_ms: int) -> None:
        heap = self._heap
        while heap and heap[0][0] < end_ms + 1:
            self.next()
        self.now_ms = max(self.now_ms, end_ms)

    def note(self, first: int, second: int, data: bytes) -> None:
        """This goes into the trace."""
        self._trace.update(_ENTRY.pack(self.now_ms, first, second))
        self._trace.update(data)

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()
