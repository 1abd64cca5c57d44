"""The messages of the protocol and their only encoding, used by the daemon and the simulator.

The first byte is the kind; kinds below 16 are votes (votes.py). Whoever sent a message is whoever
signed it: the link that it came over decides nothing but where an answer to an observer goes.

Decoding checks bounds before it allocates and knows nothing of keys; `ConsensusError` is all
that it ever raises. Votes and VIEW-CHANGEs are verified one by one, so a NEW-VIEW carries the
VIEW-CHANGEs whole: for 31 validators that is about 280 kB, below the limit of one mebibyte.
"""

import hashlib
import struct
from dataclasses import dataclass

from shoal.consensus.certificate import Certificate, read_certificate
from shoal.consensus.epochs import MAX_LINK_BYTES, EpochLink, parse_link
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import Statement, set_of
from shoal.consensus.fields import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    Reader,
    blob,
    u8,
    u16,
    u64,
)
from shoal.consensus.ledger import MAX_LEDGER_BYTES
from shoal.consensus.quorum import MAX_VALIDATORS
from shoal.consensus.records import MAX_OPERATION_BYTES, CheckpointRecord, read_record
from shoal.consensus.validators import Verifier
from shoal.consensus.votes import Vote, VoteKind, read_vote, vote_bytes

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Candidate",
    "CommitProof",
    "Epochs",
    "Message",
    "NewView",
    "PrePrepare",
    "Request",
    "Stability",
    "Status",
    "ViewChange",
    "decode",
    "encode",
    "is_attestation",
    "vote_bytes",
]

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_WINDOW = 16
MAX_WANTED = 2 * MAX_WINDOW
MAX_LINKS = 16
# The signer of a STATUS from somebody who is not a validator: it is not signed, and it is
# answered only with things that carry their own proof.
OBSERVER = 255

_VIEW_CHANGE, _NEW_VIEW, _STATUS, _COMMIT_PROOF, _STABILITY, _REQUEST, _EPOCHS = range(16, 23)

_STATUS_HEADER = struct.Struct(">QQQBQQI")

# What a STATUS says about one slot: a byte of these flags.
SLOT_PROPOSED, SLOT_PREPARED, SLOT_COMMITTED = 1, 2, 4


@dataclass(frozen=True, slots=True)
class PrePrepare:
    """The primary's proposal: its vote and the operation that the vote's digest is of."""

    vote: Vote
    operation: bytes


@dataclass(frozen=True, slots=True)
class Candidate:
    """The proposer's record, before any attestation: its CANDIDATE vote over the digest."""

    vote: Vote
    record: CheckpointRecord


@dataclass(frozen=True, slots=True)
class ViewChange:
    """I have left every view below `view`; this is all that I prepared above `low`."""

    epoch: int
    view: int
    signer: int
    low: int
    stability: Certificate | None
    prepared: tuple[Certificate, ...]
    signature: bytes = bytes(SIGNATURE_BYTES)

    def body(self) -> bytes:
        return b"".join(
            (
                u64(self.epoch),
                u64(self.view),
                u8(self.signer),
                u64(self.low),
                u8(self.stability is not None),
                self.stability.to_bytes() if self.stability else b"",
                u16(len(self.prepared)),
                *(certificate.to_bytes() for certificate in self.prepared),
            )
        )

    def to_bytes(self) -> bytes:
        return self.body() + self.signature


@dataclass(frozen=True, slots=True)
class NewView:
    """The new primary's proof that it may start `view`, and its votes for the slots in between.

    `proposals` are (digest, PRE-PREPARE signature) for the sequences min+1, min+2, ... that
    follow from the VIEW-CHANGEs; receivers work them out again and compare.
    """

    epoch: int
    view: int
    signer: int
    view_changes: tuple[ViewChange, ...]
    proposals: tuple[tuple[bytes, bytes], ...]
    signature: bytes = bytes(SIGNATURE_BYTES)

    def body(self) -> bytes:
        return b"".join(
            (
                u64(self.epoch),
                u64(self.view),
                u8(self.signer),
                u16(len(self.view_changes)),
                *(blob(change.to_bytes()) for change in self.view_changes),
                u16(len(self.proposals)),
                *(digest + signature for digest, signature in self.proposals),
            )
        )


@dataclass(frozen=True, slots=True)
class Status:
    """Where a replica stands, so that peers can send what it lacks (Castro's thesis, 5.2).

    `proved` is the last epoch whose proof is here, which may be far ahead of the one that is lived
    in. `view_changes` is the bitmap of validators whose VIEW-CHANGE for `view` is held; `slots` has
    one byte of flags for each sequence from `executed` + 1 on; `wanted` are digests of
    operations whose bytes are missing.
    """

    epoch: int
    proved: int
    view: int
    active: bool
    executed: int
    low: int
    view_changes: int
    slots: bytes
    wanted: tuple[bytes, ...]
    signer: int
    signature: bytes = bytes(SIGNATURE_BYTES)

    def body(self) -> bytes:
        return b"".join(
            (
                _STATUS_HEADER.pack(
                    self.epoch,
                    self.proved,
                    self.view,
                    self.active,
                    self.executed,
                    self.low,
                    self.view_changes,
                ),
                u16(len(self.slots)),
                self.slots,
                u16(len(self.wanted)),
                *self.wanted,
                u8(self.signer),
            )
        )


@dataclass(frozen=True, slots=True)
class CommitProof:
    """A decided operation with the COMMIT certificate that decided it: proof for anyone."""

    operation: bytes
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Stability:
    """A stability certificate, and the ledger that it certifies (or b"" when not needed)."""

    certificate: Certificate
    ledger: bytes = b""


@dataclass(frozen=True, slots=True)
class Request:
    """An operation that somebody wants ordered, or its bytes for somebody who lacks them."""

    operation: bytes


@dataclass(frozen=True, slots=True)
class Epochs:
    """Proofs of epochs in ascending order, and that the last of them has started (or None)."""

    links: tuple[EpochLink, ...]
    ready: Certificate | None = None


Message = (
    Vote
    | PrePrepare
    | Candidate
    | ViewChange
    | NewView
    | Status
    | CommitProof
    | Stability
    | Request
    | Epochs
)


def sealed_bytes(domain: bytes, mesh_id: bytes, body: bytes) -> bytes:
    """What the signature of a VIEW-CHANGE, NEW-VIEW or STATUS covers."""
    return domain + mesh_id + hashlib.sha256(body).digest()


VIEW_CHANGE_DOMAIN = b"SHOAL-VIEW-CHANGE\x01"
NEW_VIEW_DOMAIN = b"SHOAL-NEW-VIEW\x01"
STATUS_DOMAIN = b"SHOAL-STATUS\x01"


def encode(message: Message) -> bytes:
    """The message's bytes, at most MAX_MESSAGE_BYTES; `decode` is the inverse."""
    match message:
        case Vote():
            return message.to_bytes()
        case PrePrepare(vote, operation):
            return vote.to_bytes() + blob(operation)
        case Candidate(vote, record):
            return vote.to_bytes() + record.to_bytes()
        case ViewChange():
            return u8(_VIEW_CHANGE) + message.to_bytes()
        case NewView():
            return u8(_NEW_VIEW) + message.body() + message.signature
        case Status():
            return u8(_STATUS) + message.body() + message.signature
        case CommitProof(operation, certificate):
            return u8(_COMMIT_PROOF) + blob(operation) + certificate.to_bytes()
        case Stability(certificate, ledger):
            return u8(_STABILITY) + certificate.to_bytes() + blob(ledger)
        case Request(operation):
            return u8(_REQUEST) + operation
        case Epochs(links, ready):
            proof = ready.to_bytes() if ready else b""
            parts = [blob(link.to_bytes()) for link in links]
            return u8(_EPOCHS) + u16(len(parts)) + b"".join(parts) + u8(ready is not None) + proof


def decode(data: bytes) -> Message:
    """The message that these bytes are; raises ConsensusError and nothing else."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ConsensusError("too-large", f"message of {len(data)} bytes")
    reader = Reader(data)
    message = _read_message(reader.u8(), reader, data)
    reader.end()
    return message


def _read_message(kind: int, reader: Reader, data: bytes) -> Message:
    match kind:
        case VoteKind.PRE_PREPARE:
            vote = read_vote(VoteKind.PRE_PREPARE, reader)
            return PrePrepare(vote, reader.blob(MAX_OPERATION_BYTES))
        case VoteKind.CANDIDATE:
            return Candidate(read_vote(VoteKind.CANDIDATE, reader), read_record(reader))
        case (
            VoteKind.PREPARE | VoteKind.COMMIT | VoteKind.STABLE | VoteKind.ATTEST | VoteKind.READY
        ):
            return read_vote(VoteKind(kind), reader)
        case _ if kind == _VIEW_CHANGE:
            return read_view_change(reader)
        case _ if kind == _NEW_VIEW:
            return _read_new_view(reader)
        case _ if kind == _STATUS:
            return _read_status(reader)
        case _ if kind == _COMMIT_PROOF:
            return CommitProof(reader.blob(MAX_OPERATION_BYTES), read_certificate(reader))
        case _ if kind == _STABILITY:
            return Stability(read_certificate(reader), reader.blob(MAX_LEDGER_BYTES))
        case _ if kind == _REQUEST:
            if len(data) - 1 > MAX_OPERATION_BYTES:
                raise ConsensusError("too-large", "requested operation")
            return Request(reader.take(len(data) - 1))
        case _ if kind == _EPOCHS:
            links = tuple(
                parse_link(reader.blob(MAX_LINK_BYTES)) for _ in range(reader.count(MAX_LINKS))
            )
            return Epochs(links, read_certificate(reader) if reader.flag() else None)
        case _:
            raise ConsensusError("unknown-message", str(kind))


def read_view_change(reader: Reader) -> ViewChange:
    """Take one VIEW-CHANGE off the reader; raises ConsensusError."""
    return ViewChange(
        epoch=reader.u64(),
        view=reader.u64(),
        signer=reader.u8(),
        low=reader.u64(),
        stability=read_certificate(reader) if reader.flag() else None,
        prepared=tuple(read_certificate(reader) for _ in range(reader.count(MAX_WINDOW))),
        signature=reader.take(SIGNATURE_BYTES),
    )


def parse_view_change(data: bytes) -> ViewChange:
    """The VIEW-CHANGE that these bytes are; raises ConsensusError."""
    reader = Reader(data)
    change = read_view_change(reader)
    reader.end()
    return change


def read_view_change_statement(data: bytes, verifier: Verifier) -> Statement | None:
    """A VIEW-CHANGE as a piece of evidence: its signer may send one per epoch and view."""
    try:
        change = parse_view_change(data)
    except ConsensusError:
        return None
    validators = set_of(change.epoch, verifier)
    if validators is None or change.signer >= validators.n:
        return None
    key, body = validators.keys[change.signer], change.body()
    message = sealed_bytes(VIEW_CHANGE_DOMAIN, validators.mesh_id, body)
    if not verifier.verify(key, message, change.signature):
        return None
    return Statement(key, u64(change.epoch) + u64(change.view), body)


def _read_new_view(reader: Reader) -> NewView:
    return NewView(
        epoch=reader.u64(),
        view=reader.u64(),
        signer=reader.u8(),
        view_changes=tuple(
            parse_view_change(reader.blob(MAX_MESSAGE_BYTES))
            for _ in range(reader.count(MAX_VALIDATORS))
        ),
        proposals=tuple(
            (reader.take(DIGEST_BYTES), reader.take(SIGNATURE_BYTES))
            for _ in range(reader.count(MAX_WINDOW))
        ),
        signature=reader.take(SIGNATURE_BYTES),
    )


def _read_status(reader: Reader) -> Status:
    epoch, proved, view, active, executed, low, view_changes = reader.unpack(_STATUS_HEADER)
    if active > 1:
        raise ConsensusError("bad-flag", str(active))
    return Status(
        epoch=epoch,
        proved=proved,
        view=view,
        active=active == 1,
        executed=executed,
        low=low,
        view_changes=view_changes,
        slots=reader.take(reader.count(MAX_WINDOW)),
        wanted=tuple(reader.take(DIGEST_BYTES) for _ in range(reader.count(MAX_WANTED))),
        signer=reader.u8(),
        signature=reader.take(SIGNATURE_BYTES),
    )


_ATTESTATIONS = (bytes([VoteKind.ATTEST]), bytes([VoteKind.CANDIDATE]))


def is_attestation(data: bytes) -> bool:
    """True for what the Attestor takes (candidates and attestations), False for the Replica's."""
    return data[:1] in _ATTESTATIONS
