"""`shoal invite`: a member signs an invitation with its own key.

The key file signs and the running node says what the log knows: the epoch, whether this node is a
member, and above which number its invitations count. Nobody else has to agree; uses are counted by
the log when somebody comes.
"""

import asyncio
import fcntl
import os
import re
from pathlib import Path

from shoal.consensus.invitations import MAX_HINT_BYTES, Invitation, InvitedRole
from shoal.node.clock import now_ms
from shoal.node.config import load_settings
from shoal.node.errors import UserError
from shoal.node.identity import Identity
from shoal.node.inspect_client import StatusReply
from shoal.node.invitations import as_line, expiry_text, sign_invitation
from shoal.node.operator import own_node

NUMBER_NAME = "invitations-issued"
TTL_DAYS_MAX = 366
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TTL = re.compile(r"([0-9]{1,9})([smhd])")
_NUMBER_DIGITS = 32


def parse_ttl(text: str) -> int:
    """Milliseconds in "90s", "30m", "24h" or "7d"; raises UserError."""
    found = _TTL.fullmatch(text.strip())
    seconds = int(found[1]) * _UNITS_S[found[2]] if found is not None else 0
    if not 0 < seconds <= TTL_DAYS_MAX * _UNITS_S["d"]:
        raise UserError(
            f'--ttl "{text}": write how long it is good, like 30m, 24h or 7d, at most '
            f"{TTL_DAYS_MAX} days"
        )
    return 1000 * seconds


def next_number(directory: Path, floor: int, now_ms: int) -> int:
    """A number above the floor and above all that were issued here, and the time where it can be.

    Kept in a file, since a clock may have been set back meanwhile. Two commands at once wait for
    each other.
    """
    descriptor = os.open(directory / NUMBER_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = file.read(_NUMBER_DIGITS)
        last = int(text) if text.isdigit() else 0
        number = max(now_ms, floor + 1, last + 1)
        file.seek(0)
        file.truncate()
        file.write(str(number).encode())
        file.flush()
        os.fsync(file.fileno())
    return number


def make_invitation(
    identity: Identity,
    status: StatusReply,
    *,
    role: InvitedRole,
    uses: int,
    number: int,
    expires_ms: int,
    hint: str,
) -> Invitation:
    """Sign an invitation for the mesh and the epoch that the node is in; raises UserError where
    nobody could use it."""
    if status.role not in ("member", "validator"):
        raise UserError(
            "this node is no member itself yet, so it can invite nobody; wait until "
            "`shoal status` says that it is one"
        )
    if role is InvitedRole.VALIDATOR and not status.consensus.may_validate:
        raise UserError(
            "this node was not invited to vote, so it cannot invite validators; ask a validator "
            "for that, or leave --role validator out"
        )
    unsigned = Invitation(
        mesh_id=bytes.fromhex(status.mesh_id),
        inviter=identity.node_id,
        number=number,
        uses=uses,
        role=role,
        epoch=status.consensus.epoch,
        epoch_digest=bytes.fromhex(status.consensus.epoch_digest),
        expires_ms=expires_ms,
        hint=hint if len(hint.encode()) <= MAX_HINT_BYTES else "",
    )
    return sign_invitation(identity, unsigned)


def invite(directory: Path, *, role: InvitedRole, ttl_ms: int, uses: int) -> Invitation:
    """An invitation by the node of this directory, which must be running; raises UserError."""

    async def work() -> Invitation:
        identity, _, _, status = await own_node(directory)
        made_ms = now_ms()
        return make_invitation(
            identity,
            status,
            role=role,
            uses=uses,
            number=next_number(directory, status.consensus.invitation_floor, made_ms),
            expires_ms=made_ms + ttl_ms,
            hint=load_settings(directory).node.join_advertised,
        )

    return asyncio.run(work())


def explanation(invitation: Invitation) -> list[str]:
    """What to tell whoever issued it, in lines for a terminal."""
    count = "one node" if invitation.uses == 1 else f"{invitation.uses} nodes"
    votes = invitation.role is InvitedRole.VALIDATOR
    where = "" if invitation.hint else " ADDRESS"
    return [
        f"whoever has this line may join as {'validator' if votes else 'member'}: {count}, until "
        f"{expiry_text(invitation)}",
        f"there: shoal join{where} --token {as_line(invitation)[:12]}... --dir DIR",
        *([] if invitation.hint else ["this node takes no newcomers: name a member that does"]),
    ]


def as_plain(invitation: Invitation) -> dict[str, object]:
    """The same for a program."""
    return {
        "invitation": as_line(invitation),
        "mesh_id": invitation.mesh_id.hex(),
        "inviter": invitation.inviter.hex(),
        "number": invitation.number,
        "uses": invitation.uses,
        "role": invitation.role.name.lower(),
        "epoch": invitation.epoch,
        "epoch_digest": invitation.epoch_digest.hex(),
        "expires_ms": invitation.expires_ms,
        "address": invitation.hint,
    }
