"""Everything that one replica knows, in one place, and the small questions asked of it.

The protocol itself is in normal_case.py, execution.py, view_change.py and catch_up.py, as
functions over this state, one per transition of the paper. `Core` has no behaviour of its own
beyond lookups, so that whoever reads a transition sees all that it changes.
"""

from collections import Counter
from dataclasses import dataclass, field

from shoal.consensus.certificate import Certificate
from shoal.consensus.effects import Broadcast, Evidence, Send
from shoal.consensus.ledger import Ledger, Result
from shoal.consensus.messages import Message, NewView, ViewChange, encode
from shoal.consensus.outbox import Outbox
from shoal.consensus.pending import Pending
from shoal.consensus.records import NULL_DIGEST
from shoal.consensus.safety import SafetyRules
from shoal.consensus.validators import Validators, Verifier
from shoal.consensus.votes import Vote

PREFIX = "replica/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What one replica is told. `me` is its own key; one that is no validator only observes."""

    validators: Validators
    me: bytes
    # T0 of PBFT: how long a pending operation may wait in the first view. 2 s LAN, 4 s WAN.
    timeout_ms: int = 2_000
    timeout_cap_ms: int = 600_000
    # How often an idle replica says where it stands; a busy one does so every timeout_ms / 2.
    idle_status_ms: int = 10_000
    # K: a stability point every so many sequences. L: how far ahead of the last one votes count.
    stability_interval: int = 4
    window: int = 8
    # How many decided operations below the last stability point are kept for slow peers; who is
    # further behind gets a snapshot.
    retained: int = 32

    def __post_init__(self) -> None:
        if self.window % self.stability_interval or self.window < 2 * self.stability_interval:
            raise ValueError("the window must be a multiple, at least twice, of the interval")
        if not self.stability_interval >= 1 or self.window > 16:
            raise ValueError("stability_interval is at least 1 and window at most 16")
        if not 4 <= self.timeout_ms <= self.timeout_cap_ms:
            raise ValueError("timeout_ms is between 4 and timeout_cap_ms")


@dataclass(slots=True)
class Slot:
    """The votes for one sequence number.

    `proposal` is the accepted PRE-PREPARE of the current view. Of PREPAREs the one of each
    signer's highest view is kept: one that arrives before the NEW-VIEW it belongs to is there
    when it is needed. COMMITs of older views may still complete a certificate, so a few of
    those are kept per signer.
    """

    proposal: Vote | None = None
    prepares: dict[int, Vote] = field(default_factory=dict)
    commits: dict[int, dict[int, Vote]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """A decided operation, kept as long as peers may ask for it."""

    certificate: Certificate
    operation: bytes
    result: Result


@dataclass(slots=True, kw_only=True)
class Core:
    """The state of a replica. Views, sequences and times are plain integers."""

    config: Config
    safety: SafetyRules | None
    verifier: Verifier
    ledger: Ledger
    outbox: Outbox
    pending: Pending = field(default_factory=Pending)
    now_ms: int = 0

    # Where we are. `active` is false between leaving a view and accepting the next NEW-VIEW.
    view: int = 0
    active: bool = True
    backoff: int = 0
    next_sequence: int = 1

    # The log between the watermarks (low, low + window].
    low: int = 0
    stability: Certificate | None = None
    snapshot: bytes = b""
    slots: dict[int, Slot] = field(default_factory=dict)
    prepared: dict[int, Certificate] = field(default_factory=dict)

    # Operation bytes by digest, and which sequences they are kept for.
    bodies: dict[bytes, bytes] = field(default_factory=dict)
    body_sequences: dict[int, set[bytes]] = field(default_factory=dict)

    # Decisions: certificates waiting for their turn, and what was executed.
    committed: dict[int, Certificate] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)

    # Stability: our own snapshots above `low`, everybody's STABLE votes, a certificate ahead of us.
    snapshots: dict[int, bytes] = field(default_factory=dict)
    stable_votes: dict[int, dict[int, Vote]] = field(default_factory=dict)
    target: Certificate | None = None

    # View change: ours by view, theirs by signer and view, the NEW-VIEW that we live under.
    own_view_changes: dict[int, ViewChange] = field(default_factory=dict)
    view_changes: dict[int, dict[int, ViewChange]] = field(default_factory=dict)
    new_view: NewView | None = None
    plan: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    plan_end: int = 0
    new_view_timer_view: int = 0

    # What the progress timer is waiting for, whom we answered when, whom we accused of what.
    guard: bytes | int | None = None
    answered: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    accused: set[tuple[str, int]] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def validators(self) -> Validators:
        return self.verifier.validators

    @property
    def executed(self) -> int:
        """The last executed sequence: the ledger's own count, so that it cannot differ."""
        return self.ledger.sequence

    @property
    def is_primary(self) -> bool:
        me = self.safety.me if self.safety else None
        return me == self.validators.primary(self.view)

    def in_window(self, sequence: int) -> bool:
        return self.low < sequence <= self.low + self.config.window

    def slot(self, sequence: int) -> Slot:
        return self.slots.setdefault(sequence, Slot())

    def proposal(self, sequence: int) -> Vote | None:
        """The PRE-PREPARE accepted for this sequence in the current view."""
        slot = self.slots.get(sequence)
        proposal = slot.proposal if slot is not None else None
        return proposal if proposal is not None and proposal.view == self.view else None

    def open_proposals(self) -> dict[int, Vote]:
        """The current view's proposals that are not executed yet, by sequence."""
        executed, view = self.executed, self.view
        return {
            sequence: slot.proposal
            for sequence, slot in self.slots.items()
            if sequence > executed and slot.proposal is not None and slot.proposal.view == view
        }

    def body(self, digest: bytes) -> bytes | None:
        """The operation's bytes, wherever they are; None when a peer has to be asked."""
        if digest == NULL_DIGEST:
            return b""
        return self.bodies.get(digest) or self.pending.body(digest)

    def keep_body(self, sequence: int, digest: bytes, operation: bytes) -> None:
        """Make the operation's bytes durable for as long as this sequence may need them."""
        kept = self.body_sequences.setdefault(sequence, set())
        if digest not in kept and digest != NULL_DIGEST:
            kept.add(digest)
            self.bodies[digest] = operation
            self.persist(f"op/{sequence}/{digest.hex()}", operation)

    def persist(self, key: str, value: bytes | None) -> None:
        self.outbox.persist(PREFIX + key, value)

    def broadcast(self, message: Message) -> None:
        self.outbox.add(Broadcast(encode(message)))

    def send(self, peer: bytes, message: Message) -> None:
        self.outbox.add(Send(peer, encode(message)))

    def accuse(self, kind: str, signer: int, first: Message, second: Message | None) -> None:
        """Report evidence, once per kind and validator: a liar must not fill our disk with it."""
        if (kind, signer) not in self.accused:
            self.accused.add((kind, signer))
            key = self.validators.keys[signer]
            other = encode(second) if second is not None else b""
            self.outbox.add(Evidence(kind, key, encode(first), other))
