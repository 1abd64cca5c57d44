"""Invitations for tests: signed by a running node's key, or by one that is nowhere."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shoal.consensus.invitations import Invitation, InvitedRole
from shoal.node.identity import Identity
from shoal.node.invitations import sign_invitation
from shoal.node.inviting import make_invitation, next_number
from tests.node.mesh import RunningNode

HOUR_MS = 3_600_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def key_of(node: RunningNode) -> Identity:
    return Identity.load(node.directory / "identity.key")


def invitation_by(
    node: RunningNode,
    *,
    uses: int = 255,
    role: InvitedRole = InvitedRole.VALIDATOR,
    by: Callable[[RunningNode], Identity] = key_of,
    **changes: Any,
) -> Invitation:
    """What `shoal invite` would print at this node; changes are made before it is signed."""
    status, identity = node.node.status(), by(node)
    made = make_invitation(
        identity,
        status,
        role=role,
        uses=uses,
        number=next_number(node.directory, status.consensus.invitation_floor, now_ms()),
        expires_ms=now_ms() + HOUR_MS,
        hint=node.settings.node.join_advertised,
    )
    return sign_invitation(identity, replace(made, **changes))


def invitation_of_nobody(**changes: Any) -> Invitation:
    """A well-formed one to a mesh that there is not."""
    identity = Identity.generate()
    unsigned = Invitation(
        mesh_id=bytes(32),
        inviter=identity.node_id,
        number=now_ms(),
        uses=1,
        role=InvitedRole.MEMBER,
        epoch=0,
        epoch_digest=bytes(32),
        expires_ms=now_ms() + HOUR_MS,
        hint="127.0.0.1:1",
    )
    return sign_invitation(identity, replace(unsigned, **changes))
