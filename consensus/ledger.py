"""The replicated state: what every replica has after executing the same operations in order.

Execution is a pure function of (state, operation), so it is deterministic, and so is its
refusal: an operation whose turn never came (a checkpoint for a height that is taken, a stale
join) executes to `Rejected` everywhere. That is why PRE-PREPARE checks only the stateless part
of validity and pipelined slots never wait for each other (ADR 0002).

No clocks and no floats in here. Every container has a limit, since all of it travels in
snapshots; the digest over the snapshot bytes is what STABLE votes agree on.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from shoal.consensus.certificate import check_certificate
from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import ID_BYTES, Reader, u8, u16, u64
from shoal.consensus.records import Checkpoint, Join, Leave, Null, Operation
from shoal.consensus.validators import Verifier
from shoal.consensus.votes import VoteKind

MAX_MEMBERS = 1024
MAX_DEPARTED = 1024
# How many digests of executed operations are remembered. The heights of checkpoints and the
# times of joins and leaves already make each operation single-use; this window only gives a
# repeated one its honest reason.
RECENT_OPERATIONS = 256
MAX_LEDGER_BYTES = 512 * 1024
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Member:
    """Someone who may take part. `time_ms` is that of the Join which said so (0 at genesis)."""

    address: str
    shard_tokens: int
    share_permille: int
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class Executed:
    """The operation changed the ledger (or was the null operation)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The operation was ordered and did nothing, for a reason that is the same everywhere."""

    reason: str


Result = Executed | Rejected


def validate(operation: Operation, verifier: Verifier) -> str | None:
    """Why no replica should vote for this operation whatever its state; None when it is fine.

    This is the whole of PRE-PREPARE validity: signatures, certificates, the right mesh.
    """
    validators = verifier.validators
    match operation:
        case Checkpoint(record, attestation):
            if record.mesh_id != validators.mesh_id:
                return "wrong-mesh"
            if (
                record.proposer
                != validators.keys[validators.proposer(record.height, record.attempt)]
            ):
                return "wrong-proposer"
            claim = (VoteKind.ATTEST, record.attempt, record.height, record.digest)
            proof = (attestation.kind, attestation.view, attestation.sequence, attestation.digest)
            if proof != claim:
                return "attestation-of-something-else"
            try:
                check_certificate(attestation, verifier)
            except ConsensusError as error:
                return error.reason
            return None
        case Join() | Leave():
            message = operation.signed_bytes(validators.mesh_id)
            if not verifier.verify(operation.member, message, operation.signature):
                return "bad-signature"
            if isinstance(operation, Leave) and operation.member in validators.keys:
                return "validators-stay"
            return None
        case Null():
            return "null-is-not-proposed"


class Ledger:
    """Members, the last checkpoint, and the memory that makes operations single-use."""

    def __init__(self, mesh_id: bytes) -> None:
        self.mesh_id = mesh_id
        self.sequence = 0
        self.height = 0
        self.record_digest = mesh_id
        self.round = 0
        self.members: dict[bytes, Member] = {}
        self.departed: dict[bytes, int] = {}
        self.recent: dict[bytes, None] = {}

    @classmethod
    def genesis(cls, mesh_id: bytes, members: Iterable[tuple[bytes, Member]]) -> "Ledger":
        """The state before sequence 1: the members that the genesis names, no checkpoint yet."""
        ledger = cls(mesh_id)
        ledger.members = dict(sorted(members, key=lambda item: item[0]))
        if len(ledger.members) > MAX_MEMBERS:
            raise ValueError(f"at most {MAX_MEMBERS} members")
        return ledger

    def check(self, operation: Operation, digest: bytes) -> str | None:
        """Why executing this operation now would be rejected; None when it would not."""
        if digest in self.recent:
            return "already-executed"
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
                return None if operation.time_ms > known.time_ms else "stale-time"
            case Null():
                return None

    def _check_join(self, join: Join) -> str | None:
        known = self.members.get(join.member)
        last = known.time_ms if known else self.departed.get(join.member, -1)
        if join.time_ms <= last:
            return "stale-time"
        if known is None and len(self.members) >= MAX_MEMBERS:
            return "members-full"
        return None

    def execute(self, sequence: int, operation: Operation, digest: bytes) -> Result:
        """Apply the operation decided at this sequence, which must be the next one."""
        assert sequence == self.sequence + 1, "operations execute in sequence order"
        reason = self.check(operation, digest)
        self.sequence = sequence
        if isinstance(operation, Null):
            return Executed()
        if reason != "already-executed":
            self.recent[digest] = None
            if len(self.recent) > RECENT_OPERATIONS:
                del self.recent[next(iter(self.recent))]
        if reason is not None:
            return Rejected(reason)
        match operation:
            case Checkpoint(record, _):
                self.height, self.record_digest = record.height, record.digest
                self.round = record.round
            case Join():
                self.departed.pop(operation.member, None)
                self.members[operation.member] = Member(
                    operation.address,
                    operation.shard_tokens,
                    operation.share_permille,
                    operation.time_ms,
                )
            case Leave():
                del self.members[operation.member]
                self._remember_departed(operation)
        return Executed()

    def _remember_departed(self, leave: Leave) -> None:
        # Forgetting the oldest would let its old Join be replayed, by anyone, so the oldest time
        # is the one that goes: it is the least likely to be still in somebody's queue.
        self.departed[leave.member] = leave.time_ms
        if len(self.departed) > MAX_DEPARTED:
            oldest = min(self.departed, key=lambda member: (self.departed[member], member))
            del self.departed[oldest]

    def snapshot(self) -> bytes:
        """The whole state in its only encoding; `restore` is the inverse."""
        parts = [
            u8(_VERSION),
            self.mesh_id,
            u64(self.sequence),
            u64(self.height),
            self.record_digest,
            u64(self.round),
            u16(len(self.recent)),
            *self.recent,
            u16(len(self.members)),
        ]
        for identity, member in sorted(self.members.items()):
            address = member.address.encode()
            parts += [identity, u8(len(address)), address, u64(member.shard_tokens)]
            parts += [u16(member.share_permille), u64(member.time_ms)]
        parts.append(u16(len(self.departed)))
        parts += [identity + u64(time_ms) for identity, time_ms in sorted(self.departed.items())]
        return b"".join(parts)

    @classmethod
    def restore(cls, data: bytes) -> "Ledger":
        """Raises ConsensusError. Callers check the digest against a certificate first."""
        reader = Reader(data)
        if reader.u8() != _VERSION:
            raise ConsensusError("unknown-version")
        ledger = cls(reader.take(ID_BYTES))
        ledger.sequence, ledger.height = reader.u64(), reader.u64()
        ledger.record_digest, ledger.round = reader.take(32), reader.u64()
        for _ in range(reader.count(RECENT_OPERATIONS)):
            ledger.recent[reader.take(32)] = None
        for _ in range(reader.count(MAX_MEMBERS)):
            identity = reader.take(ID_BYTES)
            try:
                address = reader.take(reader.u8()).decode()
            except UnicodeDecodeError as error:
                raise ConsensusError("bad-address") from error
            tokens, share, time_ms = reader.u64(), reader.u16(), reader.u64()
            ledger.members[identity] = Member(address, tokens, share, time_ms)
        for _ in range(reader.count(MAX_DEPARTED)):
            identity = reader.take(ID_BYTES)
            ledger.departed[identity] = reader.u64()
        reader.end()
        if ledger.snapshot() != data:
            raise ConsensusError("not-canonical")
        return ledger

    def digest(self) -> bytes:
        return ledger_digest(self.snapshot())


def ledger_digest(snapshot: bytes) -> bytes:
    """What STABLE votes and stability certificates are about."""
    return hashlib.sha256(b"SHOAL-LEDGER\x01" + snapshot).digest()
