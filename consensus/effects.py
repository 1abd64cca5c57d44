"""The words that the state machines share with their drivers: events in, effects out.

Rule 1: effects are carried out in the order of the list.
Rule 2: a Persist is durable before the next effect starts. A driver that crashes between two
        effects and starts again from the rows is safe; one that reorders them is Byzantine.
Rule 3: nothing else crosses the boundary: no clock, no randomness, no sockets, no files.

Times are integers in milliseconds on the driver's monotonic clock. It may start anew with each
process: no time is ever persisted.
"""

from dataclasses import dataclass

from shoal.consensus.certificate import Certificate
from shoal.consensus.ledger import Ledger, Result
from shoal.consensus.records import CheckpointRecord, Operation
from shoal.consensus.validators import Validators

Row = tuple[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Started:
    """First event after construction or restore.

    `applied` is the last sequence whose Decided (or Restored) the driver has durably dealt
    with; whatever came after it is told again.
    """

    applied: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes from an authenticated link. `sender` is the peer's key, used only to answer it."""

    sender: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Linked:
    """A link to this peer is up: a hint that it may have what we lack, and nothing more."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The timer of this name has run out. One that was cancelled or moved is ignored."""

    name: str


@dataclass(frozen=True, slots=True)
class Submitted:
    """This node wants the operation ordered (its own Join, or what the Attestor submits)."""

    operation: bytes


Event = Started | Received | Linked | TimerFired | Submitted


@dataclass(frozen=True, slots=True)
class Persist:
    """Rows to write in one transaction, None to delete; durable before the next effect."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """To one peer, by key. May be lost: everything that matters is sent again."""

    to: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Broadcast:
    """To every other validator."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Replaces the timer of the same name."""

    name: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class CancelTimer:
    name: str


@dataclass(frozen=True, slots=True)
class Decided:
    """`operation` is final at `sequence`, and `certificate` proves it to anyone, offline.

    Told in sequence order, at least once: after a restart the ones above Started.applied come
    again. `encode(CommitProof(operation_bytes, certificate))` is what an observer needs.
    """

    sequence: int
    operation: Operation
    operation_bytes: bytes
    certificate: Certificate
    result: Result


@dataclass(frozen=True, slots=True)
class Restored:
    """State transfer: this certified ledger replaces everything up to its sequence."""

    ledger: Ledger
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class EpochStarted:
    """From here on these validators vote, and Broadcast is to them. Told first after a start."""

    validators: Validators
    parameters: bytes


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two signed statements that no honest validator makes, or one invalid one and b""."""

    kind: str
    signer: bytes
    first: bytes
    second: bytes


@dataclass(frozen=True, slots=True)
class CutDue:
    """The node has seen enough deltas for a checkpoint at this height, the next one."""

    height: int


@dataclass(frozen=True, slots=True)
class CandidateReady:
    """The record that Propose asked for."""

    record: CheckpointRecord


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer to Check: whether the node computed the same root and parameters."""

    digest: bytes
    ok: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """The ledger's last checkpoint is now this one (from Decided or Restored)."""

    height: int
    digest: bytes


AttestorEvent = (
    Started | Received | TimerFired | CutDue | CandidateReady | Checked | Committed | EpochStarted
)


@dataclass(frozen=True, slots=True)
class Propose:
    """It is this node's turn: build the record for (height, attempt), answer CandidateReady."""

    height: int
    attempt: int
    parent: bytes


@dataclass(frozen=True, slots=True)
class Check:
    """Recompute this record's root and parameters; answer Checked when that is certain."""

    record: CheckpointRecord


@dataclass(frozen=True, slots=True)
class Submit:
    """A certified checkpoint or an eviction: feed it to the Replica as Submitted."""

    operation: bytes


Effect = (
    Persist
    | Send
    | Broadcast
    | SetTimer
    | CancelTimer
    | Decided
    | Restored
    | EpochStarted
    | Evidence
    | Propose
    | Check
    | Submit
)
