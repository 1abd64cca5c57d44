"""Everything that one replica knows, in one place, and the small questions asked of it.

The protocol itself is in normal_case.py, execution.py, view_change.py and catch_up.py, as
functions over this state, one per transition of the paper. `Core` has no behaviour of its own
beyond lookups, so that whoever reads a transition sees all that it changes.
"""

from collections import Counter
from dataclasses import dataclass, field

from shoal.consensus.certificate import Certificate
from shoal.consensus.effects import Broadcast, Evidence, Send
from shoal.consensus.epochs import EpochChain
from shoal.consensus.evidence import Evict, Proof, ReadStatement, evidence_of_votes
from shoal.consensus.ledger import Ledger, Result
from shoal.consensus.messages import Message, NewView, PrePrepare, ViewChange, encode
from shoal.consensus.outbox import Outbox
from shoal.consensus.pending import Pending
from shoal.consensus.records import NULL_DIGEST
from shoal.consensus.safety import SafetyRules
from shoal.consensus.validators import Sign, Validators, Verifier
from shoal.consensus.votes import Vote

PREFIX = "replica/"
# L = 2 K (consensus.md 1.3).
WINDOW_INTERVALS = 2
# Own ledgers above the watermark, of up to half a mebibyte each.
MAX_SNAPSHOTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What one replica is told. `me` is its own key; whether it votes is for the log to say."""

    me: bytes
    # T0 of PBFT: how long a pending operation may wait in the first view. 2 s LAN, 4 s WAN.
    timeout_ms: int = 2_000
    timeout_cap_ms: int = 600_000
    # How often an idle replica says where it stands; a busy one does so every timeout_ms / 2.
    idle_status_ms: int = 10_000
    # How many decided operations below the last stability point are kept for slow peers; who is
    # further behind gets a snapshot.
    retained: int = 32
    # Reads signed statements that only other parts of the node understand (evidence.py).
    read_statement: ReadStatement | None = None

    def __post_init__(self) -> None:
        if not 4 <= self.timeout_ms <= self.timeout_cap_ms:
            raise ValueError("timeout_ms is between 4 and timeout_cap_ms")


@dataclass(slots=True)
class Slot:
    """The votes for one sequence number.

    `proposal` is the accepted PRE-PREPARE of the current view. Of PREPAREs the one of each
    signer's highest view is kept: one that arrives before the NEW-VIEW it belongs to is there
    when it is needed. COMMITs of older views may still complete a certificate, so a few of
    those are kept per signer. `deferred` is a PRE-PREPARE from beyond the horizon.
    """

    proposal: Vote | None = None
    deferred: PrePrepare | None = None
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
    sign: Sign
    epochs: EpochChain
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

    # The validators of this epoch that hold the ledger it starts from; Q of them, and it starts.
    ready_votes: dict[int, Vote] = field(default_factory=dict)
    ready: Certificate | None = None

    # View change: ours by view, theirs by signer and view, the NEW-VIEW of the last that started.
    own_view_changes: dict[int, ViewChange] = field(default_factory=dict)
    view_changes: dict[int, dict[int, ViewChange]] = field(default_factory=dict)
    new_view: NewView | None = None
    plan: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    plan_end: int = 0
    new_view_timer_view: int = 0

    # What the progress timer is waiting for, whom we answered when, whom we accused of what.
    guard: bytes | int | None = None
    guarded_since_ms: int = 0
    answered: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    asked: dict[bytes, int] = field(default_factory=dict)
    accused: set[tuple[str, int]] = field(default_factory=set)
    evictions: list[Evict] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def validators(self) -> Validators:
        return self.verifier.validators

    @property
    def executed(self) -> int:
        """The last executed sequence: the ledger's own count, so that it cannot differ."""
        return self.ledger.sequence

    @property
    def epoch(self) -> int:
        """The epoch that we vote in, or follow."""
        return self.verifier.validators.epoch

    @property
    def start(self) -> int:
        """The last sequence before this epoch."""
        return self.epochs.record(self.epoch).start

    @property
    def interval(self) -> int:
        return self.ledger.interval

    @property
    def window(self) -> int:
        """L: how far ahead of the last stability point votes count."""
        return WINDOW_INTERVALS * self.ledger.interval

    @property
    def started(self) -> bool:
        """Whether Q validators of this epoch are known to hold the ledger that it starts from."""
        return self.ready is not None or self.epoch == 0 or self.executed > self.start

    @property
    def horizon(self) -> int:
        """The last sequence that we may vote on now: the first stability point not executed yet.

        What is executed up to there may end the epoch there. Since no honest replica votes beyond
        it before it has executed it, no certificate of this epoch can exist for a sequence that
        belongs to the next (consensus.md 3.3).
        """
        if self.ledger.epoch.number != self.epoch or not self.started:
            return self.executed
        return (self.executed // self.interval + 1) * self.interval

    def proposer(self, sequence: int) -> int:
        """Whose PRE-PREPARE counts at this sequence of the current view."""
        if sequence <= self.plan_end:
            return self.validators.leader(self.view)
        return self.validators.primary(self.view, sequence)

    def in_window(self, sequence: int) -> bool:
        return self.low < sequence <= self.low + self.window

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

    def keep_snapshot(self) -> None:
        """Keep the ledger of this stability point until the watermark has passed it.

        Who follows by proofs can run far ahead of the last certificate that it has seen. The
        newest ledgers are those that the next certificate will be about; where an epoch ends none
        is newer.
        """
        self.snapshots[self.executed] = self.ledger.snapshot()
        while len(self.snapshots) > MAX_SNAPSHOTS:
            del self.snapshots[min(self.snapshots)]

    def persist(self, key: str, value: bytes | None) -> None:
        self.outbox.persist(PREFIX + key, value)

    def broadcast(self, message: Message) -> None:
        self.outbox.add(Broadcast(encode(message)))

    def send(self, peer: bytes, message: Message) -> None:
        self.outbox.add(Send(peer, encode(message)))

    def accuse(self, kind: str, signer: int, first: Message, second: Message | None) -> None:
        """Report evidence, once per kind and validator: a liar must not fill our disk with it.

        Where two signed messages prove it by themselves, have the signer evicted.
        """
        if (kind, signer) in self.accused:
            return
        self.accused.add((kind, signer))
        key = self.validators.keys[signer]
        other = encode(second) if second is not None else b""
        self.outbox.add(Evidence(kind, key, encode(first), other))
        match first, second:
            case Vote(), Vote():
                self.evictions.append(evidence_of_votes(first, second, key))
            case ViewChange(), ViewChange():
                one, two = sorted((first.to_bytes(), second.to_bytes()))
                self.evictions.append(Evict(key, Proof.VIEW_CHANGES, one, two))
