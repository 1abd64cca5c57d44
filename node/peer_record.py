"""What a node remembers of another member, whether there is a link to it or not."""

from dataclasses import dataclass


@dataclass
class PeerRecord:
    """What is known about one member as a neighbour; it outlives the links."""

    address: str = ""
    join_address: str = ""
    state: str = "unreachable"
    round_trip_ms: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    last_error: str = ""
    committed_height: int = 0
    # On the clock of the event loop; until then others keep what it would have to (handover.py).
    leaving_until: float = 0.0
