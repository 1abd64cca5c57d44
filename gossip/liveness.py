"""What members say to each other about who is alive: messages, signed records, and the core's
events and effects (detector.py).

Two records travel and are retold, so both are signed: a member says of itself that it lives, under
a number that only it can raise (its *incarnation*), and a member says of another that it does not
answer. A suspicion carries the very word of its subject that it is about, so nobody can accuse an
incarnation that does not exist yet (SWIM, Das et al. 2002, section 4.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NamedTuple, TypeAlias

ID_BYTES = 32
SIGNATURE_BYTES = 64
COUNTER_MAX = 2**62
# Records in one message: a suspicion is 200 bytes, so a message stays below 2 KiB.
RUMOURS_MAX = 8
_ALIVE = b"SHOAL-ALIVE\x01"
_SUSPECT = b"SHOAL-SUSPECT\x01"
_ANSWER = b"SHOAL-ANSWER\x01"
# The low bits count refutations, the high ones starts of the process (which are durable).
_REFUTATIONS_BITS = 32

Sign: TypeAlias = Callable[[bytes], bytes]
Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]


def first_incarnation(boot: int) -> int:
    """The incarnation that the `boot`-th process of a key starts with: above all earlier ones."""
    return boot << _REFUTATIONS_BITS


def boot_of(incarnation: int) -> int:
    """Which start of its key an incarnation belongs to."""
    return incarnation >> _REFUTATIONS_BITS


class Alive(NamedTuple):
    """`member` says that it lives; the highest incarnation counts."""

    member: bytes
    incarnation: int
    signature: bytes = b""

    def signed_bytes(self, mesh_id: bytes) -> bytes:
        """What the member signs."""
        return _ALIVE + mesh_id + self.member + self.incarnation.to_bytes(8, "big")


class Suspicion(NamedTuple):
    """`accuser` got no answer from `subject`, whose newest word it knows is `incarnation`.

    word: the subject's signature under that incarnation; empty for incarnation 0, which stands for
    a member that was never heard of.
    """

    accuser: bytes
    subject: bytes
    incarnation: int
    word: bytes = b""
    signature: bytes = b""

    def signed_bytes(self, mesh_id: bytes) -> bytes:
        """What the accuser signs."""
        number = self.incarnation.to_bytes(8, "big")
        return _SUSPECT + mesh_id + self.accuser + self.subject + number


Rumour: TypeAlias = Alive | Suspicion


def answer_bytes(mesh_id: bytes, asker: bytes, nonce: int) -> bytes:
    """What a member signs when it is probed through a third one: no relay can answer for it."""
    return _ANSWER + mesh_id + asker + nonce.to_bytes(8, "big")


class Kind(IntEnum):
    """What a message is for. The numbers are those of the wire."""

    PROBE = 1
    ACK = 2
    ASK = 3
    ANSWER = 4
    NEWS = 5


class Message(NamedTuple):
    """One message between neighbours; all kinds carry rumours.

    PROBE   are you there? member: on whose behalf, empty for the sender's own
    ACK     yes. nonce and member as in the probe; signed for the member, if there is one
    ASK     probe `member` for me
    ANSWER  what became of it: the member's own signature, or empty for no answer
    NEWS    rumours only
    """

    kind: Kind
    nonce: int = 0
    member: bytes = b""
    signature: bytes = b""
    rumours: tuple[Rumour, ...] = ()


class State(StrEnum):
    """What this node takes a member for."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


class Evidence(StrEnum):
    """What an own suspicion rests on."""

    NONE = ""
    UNHEARD = "unheard"
    SILENT = "silent"
    RESET = "link reset"


@dataclass(frozen=True, slots=True)
class Opinion:
    """What this node thinks of one member, and why; times in seconds.

    heard_s: since anything proved that it lives, None for never; silent_s: since the first probe
    that it did not answer; deadline_s: what the last probe of it was given; relays: who was asked
    to probe it, and what they said (no, or silent); accusers: who else got no answer; needed: how
    many of them it takes; timeout_s: how long it may be silent before it counts as dead; note:
    what keeps a verdict back.
    """

    member: bytes
    state: State
    incarnation: int = 0
    evidence: Evidence = Evidence.NONE
    heard_s: float | None = None
    silent_s: float = 0.0
    deadline_s: float = 0.0
    round_trip_s: float | None = None
    relays: tuple[tuple[bytes, str], ...] = ()
    accusers: tuple[bytes, ...] = ()
    needed: int = 0
    timeout_s: float = 0.0
    note: str = ""


# --- events: LinkUp and LinkDown are those of relay_events.py ------------------------------------


@dataclass(frozen=True, slots=True)
class Members:
    """Who is a member now; hubs are those that every member keeps a link to."""

    everybody: frozenset[bytes]
    hubs: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Heard:
    """A neighbour said this; its link proves who it is."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due every TICK_S, and what is later than that is this node's own fault."""


# --- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this to a neighbour."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Changed:
    """A member is taken for something else than before."""

    opinion: Opinion
