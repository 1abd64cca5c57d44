"""Invitations: a member's signed word that somebody, whoever holds it, may become a member.

An invitation is no secret of two parties: whoever has its bytes may use it, so what bounds it is
counted by the log. Each inviter's invitations have rising numbers (the time of issue), and the
ledger remembers for each inviter how often each number was used, of the newest few, and a floor at
or below which no number counts any more. So an invitation is used as often as it says and no more,
whoever shows it to whom, and the memory has a bound (ADR 0016).

When it expires is not for the log, which has no clock: those who are asked look at theirs.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import DIGEST_BYTES, ID_BYTES, SIGNATURE_BYTES, Reader, u8, u64

MAX_INVITATION_USES = 255
MAX_HINT_BYTES = 255
# The longest: six numbers and ids, the hint with its length, the signature.
MAX_INVITATION_BYTES = 2 * ID_BYTES + 8 + 1 + 1 + 8 + DIGEST_BYTES + 8 + 256 + SIGNATURE_BYTES
# How many used numbers of one inviter are remembered; a further one displaces the smallest.
MAX_USED_NUMBERS = 16


class InvitedRole(IntEnum):
    """What an invitation allows: to take part, or also to be willing to vote."""

    MEMBER = 1
    VALIDATOR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """`inviter` lets `uses` newcomers in.

    number: unique and rising for each inviter, the time of issue in ms. epoch, epoch_digest: the
    epoch that the inviter was in, by which a newcomer knows this history of the mesh from another.
    hint: host:port of a join port where to ask; may be empty.
    """

    mesh_id: bytes
    inviter: bytes
    number: int
    uses: int
    role: InvitedRole
    epoch: int
    epoch_digest: bytes
    expires_ms: int
    hint: str
    signature: bytes = bytes(SIGNATURE_BYTES)

    def fields(self) -> bytes:
        hint = self.hint.encode()
        return b"".join(
            (
                self.mesh_id,
                self.inviter,
                u64(self.number),
                u8(self.uses),
                u8(self.role),
                u64(self.epoch),
                self.epoch_digest,
                u64(self.expires_ms),
                u8(len(hint)),
                hint,
            )
        )

    def signed_bytes(self) -> bytes:
        return b"SHOAL-INVITATION\x01" + self.fields()

    def to_bytes(self) -> bytes:
        return self.fields() + self.signature


def read_invitation(reader: Reader) -> Invitation:
    """Take an invitation off the reader; raises ConsensusError for one that nobody could use."""
    mesh_id, inviter, number = reader.take(ID_BYTES), reader.take(ID_BYTES), reader.u64()
    uses, role = reader.u8(), reader.u8()
    if uses == 0:
        raise ConsensusError("bad-invitation", "for nobody")
    if role not in (InvitedRole.MEMBER, InvitedRole.VALIDATOR):
        raise ConsensusError("bad-invitation", f"role {role}")
    epoch, epoch_digest = reader.u64(), reader.take(DIGEST_BYTES)
    expires_ms = reader.u64()
    try:
        hint = reader.take(reader.u8()).decode()
    except UnicodeDecodeError as error:
        raise ConsensusError("bad-address", "not UTF-8") from error
    if not hint.isprintable():
        raise ConsensusError("bad-address", "not printable")
    return Invitation(
        mesh_id=mesh_id,
        inviter=inviter,
        number=number,
        uses=uses,
        role=InvitedRole(role),
        epoch=epoch,
        epoch_digest=epoch_digest,
        expires_ms=expires_ms,
        hint=hint,
        signature=reader.take(SIGNATURE_BYTES),
    )


def parse_invitation(data: bytes) -> Invitation:
    """The invitation that these bytes are; raises ConsensusError. Inverse of to_bytes."""
    reader = Reader(data)
    invitation = read_invitation(reader)
    reader.end()
    return invitation


@dataclass(frozen=True, slots=True)
class Issued:
    """What the log knows of one inviter's invitations.

    No number up to `floor` counts. It begins with the time at which the inviter joined, so that
    whoever left and came back cannot be held to what it signed before. used: (number, how often),
    ascending, all above the floor.
    """

    floor: int = 0
    used: tuple[tuple[int, int], ...] = ()

    def refusal(self, invitation: Invitation) -> str | None:
        """Why this invitation lets nobody in any more; None when it does."""
        if invitation.number <= self.floor:
            return "invitation-void"
        if dict(self.used).get(invitation.number, 0) >= invitation.uses:
            return "invitation-spent"
        return None

    def counted(self, invitation: Invitation) -> "Issued":
        """The same with one more use of this invitation, which `refusal` has let pass."""
        uses = dict(self.used)
        uses[invitation.number] = uses.get(invitation.number, 0) + 1
        kept = sorted(uses.items())
        if len(kept) <= MAX_USED_NUMBERS:
            return replace(self, used=tuple(kept))
        # What is forgotten must not count anew, nor anything that was issued before it.
        return Issued(kept[0][0], tuple(kept[1:]))

    def to_bytes(self) -> bytes:
        used = b"".join(u64(number) + u8(times) for number, times in self.used)
        return u64(self.floor) + u8(len(self.used)) + used


def read_issued(reader: Reader) -> Issued:
    """Take it off a snapshot; raises ConsensusError for what no ledger could have come to."""
    floor, count = reader.u64(), reader.u8()
    if count > MAX_USED_NUMBERS:
        raise ConsensusError("too-many", f"{count} invitations")
    used = tuple((reader.u64(), reader.u8()) for _ in range(count))
    below = floor
    for number, times in used:
        if number <= below or times == 0:
            raise ConsensusError("bad-invitations", "not ascending, or not used")
        below = number
    return Issued(floor, used)
