"""What one peer may ask of this node, and what becomes of one that misbehaves. Pure: no clock.

Every peer has a budget of its own per kind of message and one of bytes. Whoever spends more is not
refused but read more slowly: its frames wait in its own stream, whose flow control then stops it,
and nobody else's wait. An honest peer never comes near: a validator of a mesh that orders 300
operations a second sends 900 messages.

What no honest peer can send, whatever it believes about the state of the mesh, is a strike.
Strikes are forgiven one by one with time; too many at once end the peer's links, and it gets no
other until it has cooled off, each time twice as long as the time before.
"""

from dataclasses import dataclass, field

from shoal.gossip.liveness import Message
from shoal.node.errors import PeerError
from shoal.node.rate import TokenBucket
from shoal.node.wire import Announced, ConsensusMessages, LinkMessage, SummaryMessage

# Per peer and second, and at once.
BYTES = (16 << 20, 32 << 20)
MESSAGES: dict[str, tuple[float, float]] = {
    "consensus": (1000, 8192),
    "announce": (2000, 8192),
    "summary": (4, 32),
    # One that probes, relays and passes rumours on sends some ten a second, in a storm a hundred.
    "liveness": (200, 800),
    "other": (20, 100),
}
STRIKES_MAX = 8
STRIKE_FORGIVEN_S = 10.0
COOL_OFF_S = (30.0, 600.0)
# Who has behaved for so long after a cool-off starts anew.
REFORMED_S = 3600.0
PEERS_MAX = 2048
# Wrong whatever the receiver's state. Not here: what another epoch or height may explain, and what
# a relay passes on without being able to judge it.
INEXCUSABLE = frozenset(
    {
        "bad-flag",
        "bad-frame-hash",
        "bad-header",
        "bad-signature",
        "malformed-message",
        "oversized",
        "too-large",
        "too-many",
        "too-many-fields",
        "trailing-bytes",
        "truncated",
        "unknown-field",
        "unknown-message",
        "wrong-delta",
        "wrong-size",
    }
)


@dataclass(slots=True)
class _Record:
    """strikes: as of `struck_at`; cut_offs: how often it had too many."""

    bytes: TokenBucket = field(default_factory=lambda: TokenBucket(BYTES[0], burst=BYTES[1]))
    messages: dict[str, TokenBucket] = field(default_factory=dict)
    strikes: float = 0.0
    struck_at: float = 0.0
    cut_offs: int = 0
    cool_at: float = 0.0


class Conduct:
    """The budgets and the records of all peers; `now` in seconds never decreases."""

    def __init__(self) -> None:
        self._records: dict[bytes, _Record] = {}

    def spend(self, peer: bytes, message: LinkMessage, size: int, now: float) -> float:
        """Account for a frame of `size` bytes; returns for how many seconds to read no more of it.

        Raises PeerError("cooling-off") where it should have no link at all.
        """
        self.require_welcome(peer, now)
        record = self._record(peer)
        kind, count = _cost(message)
        bucket = record.messages.get(kind)
        if bucket is None:
            per_s, burst = MESSAGES[kind]
            bucket = record.messages[kind] = TokenBucket(per_s, burst=burst)
        return max(bucket.take(count, now), record.bytes.take(size, now))

    def strike(self, peer: bytes, reason: str, now: float) -> bool:
        """Note that a peer did wrong; True when that was once too often and its links must end."""
        if reason not in INEXCUSABLE:
            return False
        record = self._record(peer)
        forgiven = (now - record.struck_at) / STRIKE_FORGIVEN_S
        record.strikes = max(0.0, record.strikes - forgiven) + 1
        record.struck_at = now
        # Forgiveness between two strikes is a fraction, and eight in a row are eight.
        if record.strikes <= STRIKES_MAX - 1:
            return False
        if now - record.cool_at > REFORMED_S:
            record.cut_offs = 0
        record.cool_at = now + min(COOL_OFF_S[0] * 2**record.cut_offs, COOL_OFF_S[1])
        record.cut_offs += 1
        record.strikes = 0.0
        return True

    def require_welcome(self, peer: bytes, now: float) -> None:
        """Raise PeerError("cooling-off") for one that had too many strikes a moment ago."""
        record = self._records.get(peer)
        if record is not None and now < record.cool_at:
            raise PeerError("cooling-off", f"for {record.cool_at - now:.0f} s more")

    def _record(self, peer: bytes) -> _Record:
        record = self._records.get(peer)
        if record is None:
            record = self._records[peer] = _Record()
            if len(self._records) > PEERS_MAX:
                del self._records[next(iter(self._records))]
        return record


def _cost(message: LinkMessage) -> tuple[str, int]:
    """Which budget a message is paid from, and how much of it."""
    match message:
        case ConsensusMessages(messages):
            return "consensus", len(messages)
        case Announced(deltas):
            return "announce", len(deltas)
        case SummaryMessage():
            return "summary", 1
        case Message():
            return "liveness", 1
        case _:
            return "other", 1
