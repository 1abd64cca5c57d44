"""Invitations as people pass them on: one line of text, and a file in the newcomer's directory.

The line is `shoal1.` and the record (consensus/invitations.py) in base64 for URLs. Mail clients and
terminals break long lines, so white space anywhere in it does not matter. It is no secret key, but
whoever has it can use it up.
"""

import base64
import binascii
import os
import re
import time
from dataclasses import replace
from pathlib import Path

from shoal.consensus.errors import ConsensusError
from shoal.consensus.invitations import (
    MAX_INVITATION_BYTES,
    Invitation,
    InvitedRole,
    parse_invitation,
)
from shoal.node.durable import settle
from shoal.node.errors import NotAdmittedError, UserError
from shoal.node.identity import Identity, short, verify

LINE_START = "shoal1."
# The longest line, and as much white space again.
LINE_BYTES_MAX = 2 * (len(LINE_START) + -(-MAX_INVITATION_BYTES * 4 // 3))
_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")
INVITATION_NAME = "invitation"
ASK_AGAIN = "ask a member for a new one: shoal invite"
# Why nobody lets a newcomer in with this invitation, now or later.
REFUSALS = {
    "invitation-spent": f"the invitation was used up, by others or by this key; {ASK_AGAIN}",
    "invitation-void": (
        "the invitation is void: whoever signed it has issued newer ones or left since; "
        f"{ASK_AGAIN}"
    ),
    "invitation-expired": f"the invitation has expired; {ASK_AGAIN}",
    "inviter-not-a-member": f"whoever signed the invitation is no member any more; {ASK_AGAIN}",
    "inviter-may-not-validate": (
        "whoever signed the invitation may not vote, so it cannot invite anybody to; "
        "ask a validator for one"
    ),
    "not-invited-to-validate": "the invitation is for members that do not vote; set "
    "consensus.willing = false, or ask for one with --role validator",
    "not-invited": f"nobody becomes a member without an invitation; {ASK_AGAIN}",
    "bad-invitation-signature": (
        f"the invitation was not signed by the member that it names; {ASK_AGAIN}"
    ),
}


def as_line(invitation: Invitation) -> str:
    """The one line to paste; parse_line is the inverse."""
    return LINE_START + base64.urlsafe_b64encode(invitation.to_bytes()).decode().rstrip("=")


def parse_line(text: str) -> Invitation:
    """The invitation in a pasted line, whose signature is good; raises UserError.

    Whether it is expired, spent or void is asked later.
    """
    if len(text) > LINE_BYTES_MAX:
        raise UserError(
            "that is too long for an invitation; paste the one line that `shoal invite` printed, "
            f"which begins with {LINE_START}"
        )
    line = "".join(text.split())
    if not line.startswith(LINE_START):
        raise UserError(
            f"that is no invitation, which begins with {LINE_START}; paste the whole line that "
            "`shoal invite` printed"
        )
    given = line[len(LINE_START) :]
    try:
        # The library would skip or translate what is not of the alphabet.
        if not _ALPHABET.fullmatch(given):
            raise ConsensusError("not base64")
        data = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
        invitation = parse_invitation(data)
        if as_line(invitation) != line:
            raise ConsensusError("spare bits")
    except (binascii.Error, ConsensusError) as error:
        why = error.reason if isinstance(error, ConsensusError) else "not base64"
        raise UserError(
            f"the invitation is damaged or cut off ({why}); copy the whole line again"
        ) from None
    if not verify(invitation.inviter, invitation.signed_bytes(), invitation.signature):
        raise UserError(REFUSALS["bad-invitation-signature"])
    return invitation


def sign_invitation(identity: Identity, invitation: Invitation) -> Invitation:
    """The same with the inviter's signature."""
    assert invitation.inviter == identity.node_id, "one invites in one's own name"
    return replace(invitation, signature=identity.sign(invitation.signed_bytes()))


def is_expired(invitation: Invitation, now_ms: int) -> bool:
    """Whether it was good until before this time on the wall clock."""
    return now_ms > invitation.expires_ms


def require_current(invitation: Invitation, now_ms: int) -> None:
    """Raise NotAdmittedError where the invitation has expired."""
    if is_expired(invitation, now_ms):
        until = expiry_text(invitation)
        raise NotAdmittedError(f"the invitation was good until {until}; {ASK_AGAIN}")


def expiry_text(invitation: Invitation) -> str:
    """Until when it is good, in UTC."""
    try:
        moment = time.gmtime(invitation.expires_ms // 1000)
    except (OverflowError, OSError, ValueError):
        # Later than this machine's library can say; nothing that `shoal invite` would sign.
        return f"{invitation.expires_ms} ms after 1970"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", moment)


def describe(invitation: Invitation) -> str:
    """Whose it is and for what, for a log."""
    votes = "validator" if invitation.role is InvitedRole.VALIDATOR else "member"
    return f"{short(invitation.inviter)} invites {invitation.uses} as {votes}"


def keep_invitation(directory: Path, invitation: Invitation) -> None:
    """Write it where the node finds it until it is a member, readable by its owner only."""
    path = directory / INVITATION_NAME
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        # One that was left by an interrupted try keeps the mode that it had.
        os.fchmod(file.fileno(), 0o600)
        file.write(as_line(invitation) + "\n")
        file.flush()
        os.fsync(file.fileno())
    settle(temporary, path)


def kept_invitation(directory: Path) -> Invitation | None:
    """What `keep_invitation` wrote; None where there is nothing. Raises UserError."""
    path = directory / INVITATION_NAME
    try:
        with path.open("rb") as file:
            text = file.read(LINE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    try:
        return parse_line(text.decode("ascii", "replace"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def forget_invitation(directory: Path) -> None:
    """It has served; or there is none."""
    (directory / INVITATION_NAME).unlink(missing_ok=True)
