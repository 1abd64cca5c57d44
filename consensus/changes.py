"""What validators may decide about the mesh itself, and how one of them says yes.

A change (who votes, who is out, which parameters hold) needs the approval of a quorum of the
validators of the epoch that it is made in. Each approval is an operation of its own: the log is
where they meet, so there is no second protocol to gather them, anybody can count them again
later, and the ledger acts when the quorum is complete. An approval names its epoch, so one that
was not needed in time is worth nothing in the next.

An OBJECT is a change that no person approves: a node found on text of its own that the model is
better without what a member added (docs/adr/0027). That is an opinion and no proof, so it takes
the same quorum, more than half of which is honest, and not the f + 1 of which one is: an honest
node may be wrong about text unlike its own. Epochs may last for ever and opinions should not, so
an objection also names its term, a stretch of heights, and counts within that alone.
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum

from shoal.consensus.epochs import MAX_EPOCH_PARAMETERS_BYTES
from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import ID_BYTES, SIGNATURE_BYTES, Reader, blob, u8, u64

NOBODY = bytes(ID_BYTES)
# Heights of one term: objections to a member count together within it.
TERM_HEIGHTS = 64


class ChangeKind(IntEnum):
    """PROMOTE a member to validator, DEMOTE it, EXPEL it, put PARAMETERS in force, or OBJECT to
    what a member adds to the model."""

    PROMOTE = 1
    DEMOTE = 2
    EXPEL = 3
    PARAMETERS = 4
    OBJECT = 5


@dataclass(frozen=True, slots=True)
class Change:
    """`member` is whom it concerns (NOBODY for PARAMETERS, which alone carry `parameters`); `term`
    is when an OBJECT counts, 0 for all others."""

    kind: ChangeKind
    member: bytes = NOBODY
    parameters: bytes = b""
    term: int = 0

    def to_bytes(self) -> bytes:
        term = u64(self.term) if self.kind is ChangeKind.OBJECT else b""
        return u8(self.kind) + self.member + blob(self.parameters) + term

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(b"SHOAL-CHANGE\x01" + self.to_bytes()).digest()


def term_of(height: int) -> int:
    """The term that a height lies in."""
    return height // TERM_HEIGHTS


def objection(member: bytes, height: int) -> Change:
    """What a node is for that finds `member` harmful when `height` is committed."""
    return Change(ChangeKind.OBJECT, member, term=term_of(height))


@dataclass(frozen=True, slots=True, kw_only=True)
class Approve:
    """`validator` is for the change, in this epoch and no other."""

    change: Change
    epoch: int
    validator: bytes
    signature: bytes = bytes(SIGNATURE_BYTES)

    def fields(self) -> bytes:
        return self.change.to_bytes() + u64(self.epoch) + self.validator

    def signed_bytes(self, mesh_id: bytes) -> bytes:
        return b"SHOAL-APPROVE\x01" + mesh_id + self.fields()


def read_change(reader: Reader) -> Change:
    """Take one change off the reader; raises ConsensusError."""
    number = reader.u8()
    if number not in ChangeKind.__members__.values():
        raise ConsensusError("unknown-change", str(number))
    kind = ChangeKind(number)
    change = Change(
        kind,
        reader.take(ID_BYTES),
        reader.blob(MAX_EPOCH_PARAMETERS_BYTES),
        reader.u64() if kind is ChangeKind.OBJECT else 0,
    )
    if (change.kind is ChangeKind.PARAMETERS) != (change.member == NOBODY):
        raise ConsensusError("bad-change", "it concerns a member or the parameters")
    if change.parameters and change.kind is not ChangeKind.PARAMETERS:
        raise ConsensusError("bad-change", "parameters where none belong")
    return change


def read_approve(reader: Reader) -> Approve:
    """Take one approval off the reader; raises ConsensusError."""
    return Approve(
        change=read_change(reader),
        epoch=reader.u64(),
        validator=reader.take(ID_BYTES),
        signature=reader.take(SIGNATURE_BYTES),
    )
