"""What is ordered: operations, and the record of one model checkpoint.

An operation is a byte string with one encoding; its digest is what replicas vote on.

- `Checkpoint` carries a record (which deltas are in the cut, the Merkle root of the anchor that
  they give, the next epoch's parameters as opaque bytes) and the attestation certificate: Q
  validators recomputed that root before PBFT ever saw it (consensus.md 2.2).
- `Join` and `Leave` are signed by the member that they concern. Their `time_ms` also makes them
  single-use: the ledger takes only a later one for the same member. Who is no member yet joins
  with an invitation (invitations.py).
- `Evict` carries evidence that proves itself (evidence.py), `Approve` one validator's yes to a
  change of the mesh (changes.py).
- The empty string is the null operation that fills gaps after a view change (PBFT 4.4).
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

from shoal.consensus.certificate import Certificate, read_certificate
from shoal.consensus.changes import Approve, read_approve
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import Evict, read_evict
from shoal.consensus.fields import ID_BYTES, SIGNATURE_BYTES, Reader, blob, u8, u16, u32, u64
from shoal.consensus.invitations import Invitation, read_invitation

MAX_OPERATION_BYTES = 384 * 1024
MAX_CUT = 4096
MAX_PARAMETERS_BYTES = 64 * 1024
MAX_ADDRESS_BYTES = 255
MAX_SHARE_PERMILLE = 1000

_CHECKPOINT, _JOIN, _LEAVE, _EVICT, _APPROVE = range(1, 6)


@dataclass(frozen=True, slots=True)
class CutEntry:
    """One delta that is in the cut: the member's key, its sequence number, the delta's id."""

    member: bytes
    sequence: int
    delta_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """One model checkpoint. `parent` is the previous record's digest, the mesh id at height 1."""

    mesh_id: bytes
    height: int
    parent: bytes
    round: int
    proposer: bytes
    attempt: int
    anchor_root: bytes
    cut: tuple[CutEntry, ...]
    parameters: bytes

    def to_bytes(self) -> bytes:
        entries = b"".join(e.member + u64(e.sequence) + e.delta_id for e in self.cut)
        return b"".join(
            (
                self.mesh_id,
                u64(self.height),
                self.parent,
                u64(self.round),
                self.proposer,
                u32(self.attempt),
                self.anchor_root,
                u16(len(self.cut)),
                entries,
                blob(self.parameters),
            )
        )

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(b"SHOAL-RECORD\x01" + self.to_bytes()).digest()


def read_record(reader: Reader) -> CheckpointRecord:
    """Raises ConsensusError for a height of 0 or a cut that is not sorted and unique."""
    mesh_id, height, parent = reader.take(ID_BYTES), reader.u64(), reader.take(32)
    round_, proposer, attempt = reader.u64(), reader.take(ID_BYTES), reader.u32()
    anchor_root = reader.take(32)
    cut = tuple(
        CutEntry(reader.take(ID_BYTES), reader.u64(), reader.take(32))
        for _ in range(reader.count(MAX_CUT))
    )
    parameters = reader.blob(MAX_PARAMETERS_BYTES)
    if height == 0:
        raise ConsensusError("bad-height", "height 0 is the genesis")
    keys = [(entry.member, entry.sequence) for entry in cut]
    if any(first >= second for first, second in pairwise(keys)):
        raise ConsensusError("unsorted-cut")
    if round_ != max((entry.sequence for entry in cut), default=0):
        raise ConsensusError("bad-round", "not the largest sequence in the cut")
    return CheckpointRecord(
        mesh_id=mesh_id,
        height=height,
        parent=parent,
        round=round_,
        proposer=proposer,
        attempt=attempt,
        anchor_root=anchor_root,
        cut=cut,
        parameters=parameters,
    )


def parse_record(data: bytes) -> CheckpointRecord:
    """The record that these bytes are; raises ConsensusError. Inverse of to_bytes."""
    reader = Reader(data)
    record = read_record(reader)
    reader.end()
    return record


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A record and the ATTEST certificate over its digest (view = attempt, sequence = height)."""

    record: CheckpointRecord
    attestation: Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """`member` may take part: where it listens, how much data it declares, its share in ‰.

    `validates` says that it is willing to vote; whether it does is for the validators to approve.
    `invitation` is what lets a newcomer in; a member that says where it has moved needs none.
    """

    member: bytes
    address: str
    shard_tokens: int
    share_permille: int
    time_ms: int
    validates: bool = True
    invitation: Invitation | None = None
    signature: bytes = bytes(SIGNATURE_BYTES)

    def fields(self) -> bytes:
        address = self.address.encode()
        return b"".join(
            (
                self.member,
                u8(len(address)),
                address,
                u64(self.shard_tokens),
                u16(self.share_permille),
                u64(self.time_ms),
                u8(self.validates),
                u8(self.invitation is not None),
                self.invitation.to_bytes() if self.invitation is not None else b"",
            )
        )

    def signed_bytes(self, mesh_id: bytes) -> bytes:
        return b"SHOAL-JOIN\x02" + mesh_id + self.fields()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """`member` says goodbye."""

    member: bytes
    time_ms: int
    signature: bytes = bytes(SIGNATURE_BYTES)

    def signed_bytes(self, mesh_id: bytes) -> bytes:
        return b"SHOAL-LEAVE\x01" + mesh_id + self.member + u64(self.time_ms)


@dataclass(frozen=True, slots=True)
class Null:
    """Fills a slot that nobody can prove to have been used; executes to nothing."""


Operation = Checkpoint | Join | Leave | Evict | Approve | Null


def operation_bytes(operation: Operation) -> bytes:
    """The operation's only encoding; parse_operation is the inverse."""
    match operation:
        case Checkpoint(record, attestation):
            return u8(_CHECKPOINT) + record.to_bytes() + attestation.to_bytes()
        case Join():
            return u8(_JOIN) + operation.fields() + operation.signature
        case Leave():
            return u8(_LEAVE) + operation.member + u64(operation.time_ms) + operation.signature
        case Evict():
            return u8(_EVICT) + operation.fields()
        case Approve():
            return u8(_APPROVE) + operation.fields() + operation.signature
        case Null():
            return b""


def _read_join(reader: Reader) -> Join:
    member = reader.take(ID_BYTES)
    try:
        address = reader.take(reader.u8()).decode()
    except UnicodeDecodeError as error:
        raise ConsensusError("bad-address", "not UTF-8") from error
    if not address.isprintable() or not address:
        raise ConsensusError("bad-address", "empty or not printable")
    shard_tokens, share_permille, time_ms = reader.u64(), reader.u16(), reader.u64()
    if share_permille > MAX_SHARE_PERMILLE:
        raise ConsensusError("bad-share", str(share_permille))
    return Join(
        member=member,
        address=address,
        shard_tokens=shard_tokens,
        share_permille=share_permille,
        time_ms=time_ms,
        validates=reader.flag(),
        invitation=read_invitation(reader) if reader.flag() else None,
        signature=reader.take(SIGNATURE_BYTES),
    )


def parse_operation(data: bytes) -> Operation:
    """The operation that these bytes are; raises ConsensusError. Inverse of operation_bytes."""
    if len(data) > MAX_OPERATION_BYTES:
        raise ConsensusError("too-large", f"operation of {len(data)} bytes")
    if not data:
        return Null()
    reader = Reader(data)
    kind = reader.u8()
    operation: Operation
    if kind == _CHECKPOINT:
        operation = Checkpoint(read_record(reader), read_certificate(reader))
    elif kind == _JOIN:
        operation = _read_join(reader)
    elif kind == _LEAVE:
        member, time_ms = reader.take(ID_BYTES), reader.u64()
        signature = reader.take(SIGNATURE_BYTES)
        operation = Leave(member=member, time_ms=time_ms, signature=signature)
    elif kind == _EVICT:
        operation = read_evict(reader)
    elif kind == _APPROVE:
        operation = read_approve(reader)
    else:
        raise ConsensusError("unknown-operation", str(kind))
    reader.end()
    return operation


def operation_digest(data: bytes) -> bytes:
    """What replicas vote on: SHA-256 of the operation's bytes under a domain of its own."""
    return hashlib.sha256(b"SHOAL-OPERATION\x01" + data).digest()


NULL_DIGEST = operation_digest(b"")
