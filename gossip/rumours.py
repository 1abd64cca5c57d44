"""News that spreads by being carried along: each record a bounded number of times.

Whoever learns something new tells it to a few at once and then adds it to whatever it says anyway,
4 log10(n + 1) times in all, which reaches everybody with high probability (SWIM section 4.1; the
factor is memberlist's). What is about the listener itself goes first, so that who is accused hears
of it soon (Lifeguard's buddy system).
"""

import heapq
import math
from collections.abc import Hashable

from shoal.gossip.liveness import RUMOURS_MAX, Alive, Rumour

RETRANSMIT_FACTOR = 4
# More than one record about each of 1,000 members; the oldest goes.
QUEUED_MAX = 2048


def retransmissions(members: int) -> int:
    """How often one node tells one record in a mesh of so many members."""
    return RETRANSMIT_FACTOR * max(1, math.ceil(math.log10(members + 1)))


def about(rumour: Rumour) -> bytes:
    """The member that a record is about."""
    return rumour.member if isinstance(rumour, Alive) else rumour.subject


def _key(rumour: Rumour) -> Hashable:
    if isinstance(rumour, Alive):
        return rumour.member
    return rumour.subject, rumour.accuser


class Rumours:
    """What is still to be told; per subject (and accuser) only the newest."""

    def __init__(self) -> None:
        # key -> (record, how often it may still be told)
        self._queue: dict[Hashable, tuple[Rumour, int]] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, rumour: Rumour, times: int) -> None:
        """Tell this so often; it replaces what was to be told of the same kind."""
        self._queue.pop(_key(rumour), None)
        self._queue[_key(rumour)] = (rumour, times)
        if len(self._queue) > QUEUED_MAX:
            del self._queue[next(iter(self._queue))]

    def forget(self, member: bytes, below: int) -> None:
        """Tell nothing more about incarnations of `member` below this one."""
        gone = [
            key
            for key, (rumour, _) in self._queue.items()
            if about(rumour) == member and rumour.incarnation < below
        ]
        for key in gone:
            del self._queue[key]

    def take(self, listener: bytes, limit: int = RUMOURS_MAX) -> tuple[Rumour, ...]:
        """What to tell `listener` now: what is about it, then what was told least often."""
        chosen = heapq.nsmallest(
            limit,
            self._queue.items(),
            key=lambda item: (about(item[1][0]) != listener, -item[1][1]),
        )
        for key, (rumour, times) in chosen:
            if times > 1:
                self._queue[key] = (rumour, times - 1)
            else:
                del self._queue[key]
        return tuple(rumour for _, (rumour, _) in chosen)
