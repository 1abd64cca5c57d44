"""The replicated state: what every replica has after executing the same operations in order.

Execution is a pure function of (state, operation), so it is deterministic, and so is its
refusal: an operation whose turn never came (a checkpoint for a height that is taken, a stale
join) executes to `Rejected` everywhere. That is why PRE-PREPARE checks only the stateless part
of validity (validity.py) and pipelined slots never wait for each other (ADR 0002).

The voting set is part of it. What changes the set is queued here and takes effect at the next
stability point: `boundary` says which, and the operation executed there starts the next epoch.

No clocks and no floats in here. Every container has a limit, since all of it travels in
snapshots; the digest over the snapshot bytes is what STABLE votes agree on.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from shoal.consensus.changes import Approve, Change, ChangeKind, term_of
from shoal.consensus.epochs import (
    MAX_EPOCH_PARAMETERS_BYTES,
    EpochRecord,
    first_epoch,
    ledger_digest_of,
    read_epoch,
)
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import Evict
from shoal.consensus.fields import DIGEST_BYTES, ID_BYTES, Reader, blob, u8, u16, u64
from shoal.consensus.members import Member, enter, invitation_refusal, read_member
from shoal.consensus.quorum import MAX_VALIDATORS, faults, quorum
from shoal.consensus.records import Checkpoint, Join, Leave, Null, Operation
from shoal.consensus.validators import STABILITY_INTERVAL

MAX_MEMBERS = 1024
MAX_DEPARTED = 1024
# How many digests of executed operations are remembered. The heights of checkpoints and the
# times of joins and leaves already make each operation single-use; this window only gives a
# repeated one its honest reason.
RECENT_OPERATIONS = 256
MAX_LEDGER_BYTES = 640 * 1024
# How many open changes of one validator are remembered; a further one displaces its oldest.
MAX_OPEN_CHANGES = 8
_VERSION = 3


class Eviction(IntEnum):
    """Why a member is out for good: evidence that proves itself, a decision of people, or the
    opinion of a quorum. Each is the time at which it "left", later than any Join or Leave may be.
    """

    HARM = 2**64 - 3
    PEOPLE = 2**64 - 2
    EVIDENCE = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Executed:
    """The operation changed the ledger (or was the null operation)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The operation was ordered and did nothing, for a reason that is the same everywhere."""

    reason: str


Result = Executed | Rejected


class Ledger:
    """Members, validators, the last checkpoint, and what makes operations single-use."""

    def __init__(self, epoch: EpochRecord, interval: int = STABILITY_INTERVAL) -> None:
        self.mesh_id = epoch.mesh_id
        self.interval = interval
        self.epoch = epoch
        self.sequence = 0
        self.height = 0
        self.record_digest = epoch.mesh_id
        self.round = 0
        self.members: dict[bytes, Member] = {}
        self.departed: dict[bytes, int] = {}
        self.recent: dict[bytes, None] = {}
        # Where the present epoch ends, 0 while nothing calls for that; who becomes a validator
        # (True) or ceases to be one (False) then, in the order in which it was decided; which
        # parameters hold from then on; and the digests of the changes that each validator is for.
        self.boundary = 0
        self.turns: dict[bytes, bool] = {}
        self.next_parameters: bytes | None = None
        self.approvals: dict[bytes, tuple[bytes, ...]] = {}

    @classmethod
    def genesis(
        cls,
        mesh_id: bytes,
        members: Iterable[tuple[bytes, Member]],
        validators: Iterable[bytes],
        interval: int = STABILITY_INTERVAL,
    ) -> "Ledger":
        """The state before sequence 1: what the genesis names, no checkpoint yet."""
        ledger = cls(first_epoch(mesh_id, validators), interval)
        ledger.members = dict(sorted(members, key=lambda item: item[0]))
        if len(ledger.members) > MAX_MEMBERS:
            raise ValueError(f"at most {MAX_MEMBERS} members")
        return ledger

    def check(self, operation: Operation, digest: bytes) -> str | None:
        """Why executing this operation now would be rejected; None when it would not."""
        return "already-executed" if digest in self.recent else self.refusal(operation)

    def refusal(self, operation: Operation) -> str | None:
        """The same, whether or not this very operation was executed before, for nothing perhaps."""
        match operation:
            case Checkpoint(record, _):
                if record.height != self.height + 1:
                    return "stale-height" if record.height <= self.height else "future-height"
                return None if record.parent == self.record_digest else "wrong-parent"
            case Join():
                return self._check_join(operation)
            case Leave():
                known = self.members.get(operation.member)
                if known is None:
                    return "not-a-member"
                if operation.time_ms <= known.time_ms:
                    return "stale-time"
                if operation.time_ms >= Eviction.HARM:
                    return "bad-time"
                return self._check_removal(operation.member)
            case Evict():
                if operation.member not in self.members:
                    return "not-a-member"
                return self._check_removal(operation.member)
            case Approve():
                return self._check_approval(operation)
            case Null():
                return None

    def _check_join(self, join: Join) -> str | None:
        known = self.members.get(join.member)
        last = known.time_ms if known else self.departed.get(join.member, -1)
        if last >= Eviction.HARM:
            return "evicted"
        if join.time_ms <= last:
            return "stale-time"
        if join.time_ms >= Eviction.HARM:
            return "bad-time"
        if reason := invitation_refusal(self.members, join):
            return reason
        full = known is None and len(self.members) >= MAX_MEMBERS
        return "members-full" if full else None

    def coming_validators(self) -> set[bytes]:
        """The voting set once everything that is queued has taken effect."""
        keys = set(self.epoch.keys)
        for member, votes in self.turns.items():
            keys = keys | {member} if votes else keys - {member}
        return keys

    def is_evicted(self, member: bytes) -> bool:
        """Whether this key is out for good."""
        return self.departed.get(member, 0) >= Eviction.HARM

    def evictions(self) -> dict[bytes, Eviction]:
        """Who is out for good, and why."""
        return {who: Eviction(time) for who, time in self.departed.items() if self.is_evicted(who)}

    def _check_removal(self, member: bytes) -> str | None:
        return "last-validator" if self.coming_validators() == {member} else None

    def _check_approval(self, approve: Approve) -> str | None:
        change = approve.change
        if approve.epoch != self.epoch.number or approve.validator not in self.epoch.keys:
            return "wrong-epoch"
        if change.kind is ChangeKind.OBJECT and change.term != term_of(self.height):
            return "wrong-term"
        if change.digest in self.approvals.get(approve.validator, ()):
            return "already-approved"
        if change.kind is ChangeKind.PARAMETERS:
            return None
        coming = self.coming_validators()
        if change.member not in self.members:
            return "not-a-member"
        match change.kind:
            case ChangeKind.PROMOTE:
                if change.member in coming:
                    return "validator-already"
                if not self.members[change.member].validates:
                    return "not-willing"
                return "validators-full" if len(coming) >= MAX_VALIDATORS else None
            case ChangeKind.DEMOTE if change.member not in coming:
                return "no-validator"
            case _:
                return self._check_removal(change.member)

    def execute(self, sequence: int, operation: Operation, digest: bytes) -> Result:
        """Apply the operation decided at this sequence, which must be the next one."""
        assert sequence == self.sequence + 1, "operations execute in sequence order"
        reason = self.check(operation, digest)
        self.sequence = sequence
        if not isinstance(operation, Null):
            if reason != "already-executed":
                self.recent[digest] = None
                if len(self.recent) > RECENT_OPERATIONS:
                    del self.recent[next(iter(self.recent))]
            if reason is None:
                self._apply(operation)
        self._set_boundary()
        if sequence == self.boundary:
            self._start_epoch()
        return Executed() if reason is None else Rejected(reason)

    def _apply(self, operation: Operation) -> None:
        match operation:
            case Checkpoint(record, _):
                self.height, self.record_digest = record.height, record.digest
                self.round = record.round
            case Join():
                self.departed.pop(operation.member, None)
                enter(self.members, operation)
            case Leave():
                self._remove(operation.member, operation.time_ms)
            case Evict():
                self._remove(operation.member, Eviction.EVIDENCE)
            case Approve():
                self._count_approval(operation)
            case Null():
                pass

    def _remove(self, member: bytes, time_ms: int) -> None:
        """A member is gone at once; if it votes, its vote counts until the epoch ends."""
        del self.members[member]
        self.turns.pop(member, None)
        if member in self.epoch.keys:
            self.turns[member] = False
        self._remember_departed(member, time_ms)

    def _count_approval(self, approve: Approve) -> None:
        digest = approve.change.digest
        theirs = (*self.approvals.get(approve.validator, ()), digest)
        self.approvals[approve.validator] = theirs[-MAX_OPEN_CHANGES:]
        count = sum(digest in changes for changes in self.approvals.values())
        if count < quorum(len(self.epoch.keys)):
            return
        for validator, changes in self.approvals.items():
            self.approvals[validator] = tuple(other for other in changes if other != digest)
        self._decide(approve.change)

    def _decide(self, change: Change) -> None:
        match change.kind:
            case ChangeKind.PROMOTE:
                self._turn(change.member, votes=True)
            case ChangeKind.DEMOTE:
                self._turn(change.member, votes=False)
            case ChangeKind.EXPEL:
                self._remove(change.member, Eviction.PEOPLE)
            case ChangeKind.OBJECT:
                self._remove(change.member, Eviction.HARM)
            case ChangeKind.PARAMETERS:
                self.next_parameters = change.parameters

    def _turn(self, member: bytes, *, votes: bool) -> None:
        self.turns.pop(member, None)
        if votes != (member in self.epoch.keys):
            self.turns[member] = votes

    def _set_boundary(self) -> None:
        """The first stability point, from here on, at which there is something to change.

        An epoch ends even when what it was to end for is called off before: then the approvals
        that decided it are void, and nobody can count them a second time.
        """
        if not self.boundary and (self.turns or self.next_parameters is not None):
            self.boundary = -(-self.sequence // self.interval) * self.interval

    def _start_epoch(self) -> None:
        """The present set ends here: what was queued takes effect, as much as one epoch may.

        At most max(1, f) validators change at a time, so that most of a quorum of the new set
        knows the old one's last words; what is left over waits for the next stability point.
        """
        keys = set(self.epoch.keys)
        left = max(1, faults(len(keys)))
        for member, votes in list(self.turns.items()):
            after = keys | {member} if votes else keys - {member}
            # The order in which turns were decided may empty or overfill the set on the way to
            # where it is going; those that would do that wait for the others.
            if left and 1 <= len(after) <= MAX_VALIDATORS:
                keys, left = after, left - 1
                del self.turns[member]
        self.epoch = EpochRecord(
            mesh_id=self.mesh_id,
            number=self.epoch.number + 1,
            parent=self.epoch.digest,
            start=self.sequence,
            keys=tuple(sorted(keys)),
            parameters=(
                self.epoch.parameters if self.next_parameters is None else self.next_parameters
            ),
        )
        self.next_parameters = None
        self.approvals = {}
        self.boundary = self.sequence + self.interval if self.turns else 0

    def _remember_departed(self, member: bytes, time_ms: int) -> None:
        # Forgetting the oldest would let its old Join be replayed, by anyone, so the oldest time
        # is the one that goes: it is the least likely to be still in somebody's queue.
        self.departed[member] = time_ms
        if len(self.departed) > MAX_DEPARTED:
            oldest = min(self.departed, key=lambda other: (self.departed[other], other))
            del self.departed[oldest]

    def snapshot(self) -> bytes:
        """The whole state in its only encoding; `restore` is the inverse."""
        parts = [
            u8(_VERSION),
            blob(self.epoch.to_bytes()),
            u8(self.interval),
            u64(self.sequence),
            u64(self.height),
            self.record_digest,
            u64(self.round),
            u16(len(self.recent)),
            *self.recent,
            u16(len(self.members)),
        ]
        for identity, member in sorted(self.members.items()):
            parts += [identity, member.to_bytes()]
        parts.append(u16(len(self.departed)))
        parts += [identity + u64(time_ms) for identity, time_ms in sorted(self.departed.items())]
        parts += [u64(self.boundary), u16(len(self.turns))]
        parts += [member + u8(votes) for member, votes in self.turns.items()]
        parts.append(u8(self.next_parameters is not None) + blob(self.next_parameters or b""))
        parts.append(u16(len(self.approvals)))
        for validator, digests in sorted(self.approvals.items()):
            parts += [validator, u16(len(digests)), *digests]
        return b"".join(parts)

    @classmethod
    def restore(cls, data: bytes) -> "Ledger":
        """Raises ConsensusError. Callers check the digest against a certificate first."""
        reader = Reader(data)
        epoch = _read_header(reader)
        ledger = cls(epoch, reader.u8())
        ledger.sequence, ledger.height = reader.u64(), reader.u64()
        ledger.record_digest, ledger.round = reader.take(32), reader.u64()
        for _ in range(reader.count(RECENT_OPERATIONS)):
            ledger.recent[reader.take(32)] = None
        for _ in range(reader.count(MAX_MEMBERS)):
            identity, member = read_member(reader)
            ledger.members[identity] = member
        for _ in range(reader.count(MAX_DEPARTED)):
            identity = reader.take(ID_BYTES)
            ledger.departed[identity] = reader.u64()
        ledger.boundary = reader.u64()
        for _ in range(reader.count(MAX_MEMBERS + MAX_VALIDATORS)):
            identity = reader.take(ID_BYTES)
            ledger.turns[identity] = reader.flag()
        given, parameters = reader.flag(), reader.blob(MAX_EPOCH_PARAMETERS_BYTES)
        ledger.next_parameters = parameters if given else None
        for _ in range(reader.count(MAX_VALIDATORS)):
            identity = reader.take(ID_BYTES)
            count = reader.count(MAX_OPEN_CHANGES)
            ledger.approvals[identity] = tuple(reader.take(DIGEST_BYTES) for _ in range(count))
        reader.end()
        if ledger.snapshot() != data:
            raise ConsensusError("not-canonical")
        return ledger

    def digest(self) -> bytes:
        return ledger_digest(self.snapshot())


def _read_header(reader: Reader) -> EpochRecord:
    if reader.u8() != _VERSION:
        raise ConsensusError("unknown-version")
    inner = Reader(reader.blob(MAX_LEDGER_BYTES))
    epoch = read_epoch(inner)
    inner.end()
    return epoch


def split_snapshot(snapshot: bytes) -> tuple[EpochRecord, bytes]:
    """The epoch record in a snapshot, and the digest of the rest; raises ConsensusError."""
    reader = Reader(snapshot)
    epoch = _read_header(reader)
    body = snapshot[5 + len(epoch.to_bytes()) :]
    return epoch, hashlib.sha256(snapshot[:1] + body).digest()


def ledger_digest(snapshot: bytes) -> bytes:
    """What STABLE votes and stability certificates are about."""
    epoch, body_digest = split_snapshot(snapshot)
    return ledger_digest_of(epoch.digest, body_digest)
