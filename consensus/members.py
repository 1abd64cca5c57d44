"""A member as the ledger knows it, its bytes in a snapshot, and who becomes one by whose word."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace

from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import ID_BYTES, Reader, u8, u16, u64
from shoal.consensus.invitations import InvitedRole, Issued, read_issued
from shoal.consensus.records import Join

NOTHING_ISSUED = Issued()


@dataclass(frozen=True, slots=True)
class Member:
    """Someone who may take part. `time_ms` is that of the Join which said so (0 at genesis).

    may_validate: what it was invited to; founders may. issued: its own invitations so far.
    """

    address: str
    shard_tokens: int
    share_permille: int
    time_ms: int = 0
    validates: bool = True
    may_validate: bool = True
    issued: Issued = NOTHING_ISSUED

    def to_bytes(self) -> bytes:
        address = self.address.encode()
        return b"".join(
            (
                u8(len(address)),
                address,
                u64(self.shard_tokens),
                u16(self.share_permille),
                u64(self.time_ms),
                u8(self.validates),
                u8(self.may_validate),
                self.issued.to_bytes(),
            )
        )


def read_member(reader: Reader) -> tuple[bytes, Member]:
    """Take an id and its member off a snapshot; raises ConsensusError."""
    identity = reader.take(ID_BYTES)
    try:
        address = reader.take(reader.u8()).decode()
    except UnicodeDecodeError as error:
        raise ConsensusError("bad-address") from error
    return identity, Member(
        address,
        reader.u64(),
        reader.u16(),
        reader.u64(),
        validates=reader.flag(),
        may_validate=reader.flag(),
        issued=read_issued(reader),
    )


def invitation_refusal(members: Mapping[bytes, Member], join: Join) -> str | None:
    """Why nobody has allowed this Join; None when a member has, or it is a member that moves.

    Nobody comes in but by the word of a member, as often as that says and to what it says.
    """
    known, invitation = members.get(join.member), join.invitation
    if known is not None:
        escalates = join.validates and not known.may_validate
        return "not-invited-to-validate" if escalates else None
    if invitation is None:
        return "not-invited"
    inviter = members.get(invitation.inviter)
    if inviter is None:
        return "inviter-not-a-member"
    if reason := inviter.issued.refusal(invitation):
        return reason
    may_validate = invitation.role is InvitedRole.VALIDATOR
    if may_validate and not inviter.may_validate:
        # Nobody gives what it does not have: it would give it to a second key of its own.
        return "inviter-may-not-validate"
    return "not-invited-to-validate" if join.validates and not may_validate else None


def enter(members: MutableMapping[bytes, Member], join: Join) -> None:
    """A member moves, or somebody becomes one, which counts as one use of its invitation."""
    known, invitation = members.get(join.member), join.invitation
    if known is not None:
        may_validate, issued = known.may_validate, known.issued
    else:
        assert invitation is not None, "invitation_refusal lets nobody else in"
        inviter = members[invitation.inviter]
        members[invitation.inviter] = replace(inviter, issued=inviter.issued.counted(invitation))
        may_validate = invitation.role is InvitedRole.VALIDATOR
        # What this key signed in an earlier membership is void.
        issued = Issued(floor=join.time_ms)
    members[join.member] = Member(
        join.address,
        join.shard_tokens,
        join.share_permille,
        join.time_ms,
        validates=join.validates,
        may_validate=may_validate,
        issued=issued,
    )
