"""What a peer can do wrong, as one family of exceptions with short stable reasons.

`reason` is a kebab-case word that becomes a counter label and a line of README.md. A broken
invariant of our own is an AssertionError instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.gossip.delta import DeltaHeader


class GossipError(ValueError):
    """Their fault: bytes or claims that an honest peer would not have sent."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class DeltaError(GossipError):
    """A delta that cannot be used, now or ever."""


class EquivocationError(DeltaError):
    """One sender signed two different headers with one sequence number.

    Together with both signatures, which whoever stores the deltas has, the two headers prove it
    to anybody.
    """

    def __init__(self, first: DeltaHeader, second: DeltaHeader) -> None:
        super().__init__("equivocation", f"sequence {first.sequence} of {first.sender.hex()[:16]}")
        self.first = first
        self.second = second
