"""What a peer can do wrong, as one exception with a short stable reason.

Expected wrong input raises `ConsensusError`; the reason becomes a counter label, so it is a
kebab-case word from a small vocabulary. A broken invariant of our own is `AssertionError`: the
driver must let it end the process, because a replica that has lost its footing must not vote.
"""


class ConsensusError(ValueError):
    """Their fault: bytes, signatures or claims that an honest peer would not have sent."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
