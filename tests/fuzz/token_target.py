"""What somebody pastes after `shoal join --token`, and what the log makes of the record inside."""

from contextlib import suppress
from dataclasses import replace
from functools import cache

from shoal.consensus.errors import ConsensusError
from shoal.consensus.invitations import Invitation, InvitedRole, Issued, parse_invitation
from shoal.node.errors import UserError
from shoal.node.identity import Identity
from shoal.node.invitations import (
    LINE_BYTES_MAX,
    as_line,
    describe,
    is_expired,
    parse_line,
    sign_invitation,
)
from shoal.node.inviting import as_plain, explanation


@cache
def _inviter() -> Identity:
    return Identity.generate()


def token(data: bytes) -> None:
    """Any text, and any record under a signature that is good: whoever invites may be hostile."""
    text = data.decode("utf-8", "replace")
    with suppress(UserError):
        assert as_line(parse_line(text)) == "".join(text.split())
        assert len(text) <= LINE_BYTES_MAX
    try:
        record = parse_invitation(data)
    except ConsensusError:
        return
    assert record.to_bytes() == data
    signed = sign_invitation(_inviter(), replace(record, inviter=_inviter().node_id))
    assert parse_line(as_line(signed)) == signed
    assert is_expired(signed, signed.expires_ms + 1)
    for line in (*explanation(signed), describe(signed)):
        assert "\n" not in line
    as_plain(signed)
    _use(signed)


def _use(invitation: Invitation) -> None:
    """As often as it says and no more."""
    issued, used = Issued(), 0
    while issued.refusal(invitation) is None:
        issued, used = issued.counted(invitation), used + 1
        assert used <= invitation.uses
    assert used == (invitation.uses if invitation.number else 0)


def token_seeds() -> list[bytes]:
    """Lines, broken ones, and records."""
    identity = _inviter()
    made = [
        sign_invitation(
            identity,
            Invitation(
                mesh_id=b"\x01" * 32,
                inviter=identity.node_id,
                number=number,
                uses=uses,
                role=role,
                epoch=2,
                epoch_digest=b"\x02" * 32,
                expires_ms=1_800_000_000_000,
                hint=hint,
            ),
        )
        for number, uses, role, hint in (
            (1, 1, InvitedRole.MEMBER, ""),
            (1_700_000_000_000, 255, InvitedRole.VALIDATOR, "fish.example:7500"),
        )
    ]
    lines = [as_line(each).encode() for each in made]
    return [*lines, b" \r\n".join((lines[0][:70], lines[0][70:])), *(m.to_bytes() for m in made)]
