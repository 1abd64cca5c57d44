"""A small town for the table of invitations: two validators that really run, and who is not one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.invitations import Invitation, InvitedRole
from shoal.consensus.records import Join, Leave, operation_bytes
from shoal.node.config import load_settings
from shoal.node.identity import Identity
from shoal.node.invitations import sign_invitation
from shoal.node.join import ask_to_join
from shoal.node.membership import approval
from shoal.node.mesh_parameters import change_to
from tests.node.inviting import invitation_by
from tests.node.mesh import QUICK, RunningNode, found_mesh, until

SECONDS = 20.0


class Town:
    """Two nodes that vote, and identities that come and go without a node of their own."""

    def __init__(self, nodes: list[RunningNode]) -> None:
        self.nodes = nodes
        self.mesh_id = nodes[0].node.mesh_id
        self._newest_ms = 0

    def time_ms(self) -> int:
        """The time, but never the same twice."""
        self._newest_ms = max(self._newest_ms + 1, time.time_ns() // 1_000_000)
        return self._newest_ms

    def invite(self, by: int = 0, *, uses: int = 1, **changes: Any) -> Invitation:
        """A member's operator makes one."""
        return invitation_by(self.nodes[by], uses=uses, **changes)

    def invited_by(self, who: Identity, **changes: Any) -> Invitation:
        """The same by an identity without a node, member or not."""
        return sign_invitation(
            who,
            replace(self.invite(), inviter=who.node_id, **{"number": self.time_ms(), **changes}),
        )

    def join(self, who: Identity, invitation: Invitation | None, *, votes: bool = False) -> bytes:
        """The signed Join of this identity."""
        unsigned = Join(
            member=who.node_id,
            address="127.0.0.1:1",
            shard_tokens=1,
            share_permille=1000,
            time_ms=self.time_ms(),
            validates=votes,
            invitation=invitation,
        )
        return operation_bytes(
            replace(unsigned, signature=who.sign(unsigned.signed_bytes(self.mesh_id)))
        )

    async def ask(self, operation: bytes, at: int = 0) -> str:
        """What the join port of this node says: "" where it takes the operation."""
        node = self.nodes[at]
        (said,) = await ask_to_join([(node.id, node.settings.node.join_listen)], operation)
        return said

    async def tries(
        self, who: Identity, invitation: Invitation | None, *, at: int = 0, votes: bool = False
    ) -> str:
        """Ask; and where it is taken, wait until it is a member or the log has refused it."""
        operation = self.join(who, invitation, votes=votes)
        said = await self.ask(operation, at)
        if not said:
            await self.settled(who)
        return said

    async def settled(self, who: Identity) -> None:
        await until(lambda: self.is_in(who), self.nodes, seconds=SECONDS)

    def is_in(self, who: Identity) -> bool:
        """Whether all ledgers have it as a member."""
        return all(who.node_id in self.members(at) for at in range(len(self.nodes)))

    def members(self, at: int) -> dict[bytes, Any]:
        return self.nodes[at].node.state.consensus.replica.ledger.members

    async def newcomer(self, *, role: InvitedRole = InvitedRole.VALIDATOR) -> Identity:
        """A member without a node, let in by node 1."""
        who = Identity.generate()
        assert await self.tries(who, self.invite(1, role=role)) == ""
        return who

    async def leaves(self, who: Identity) -> None:
        unsigned = Leave(member=who.node_id, time_ms=self.time_ms())
        signature = who.sign(unsigned.signed_bytes(self.mesh_id))
        assert await self.ask(operation_bytes(replace(unsigned, signature=signature))) == ""
        await self._until_out(who)

    async def expel(self, who: Identity) -> None:
        self._approve(Change(ChangeKind.EXPEL, who.node_id))
        await self._until_out(who)

    async def next_epoch(self) -> None:
        """Both validators change how the mesh trains, which begins an epoch."""
        now = self.nodes[0].node.state.mesh.now()
        number = self.nodes[0].node.status().consensus.epoch
        self._approve(change_to(replace(now, local_steps=now.local_steps + 1)))
        await until(
            lambda: all(each.node.status().consensus.epoch > number for each in self.nodes),
            self.nodes,
            seconds=SECONDS,
        )

    def _approve(self, change: Change) -> None:
        for node in self.nodes:
            identity = Identity.load(node.directory / "identity.key")
            epoch = node.node.status().consensus.epoch
            node.node.state.consensus.submit(approval(identity, self.mesh_id, epoch, change))

    async def _until_out(self, who: Identity) -> None:
        await until(
            lambda: not any(who.node_id in self.members(at) for at in (0, 1)),
            self.nodes,
            seconds=SECONDS,
        )


@asynccontextmanager
async def town(directory: Path) -> AsyncIterator[Town]:
    """Two validators, who do not train."""
    nodes = [
        RunningNode(home, load_settings(home, QUICK)) for home in found_mesh(directory, nodes=2)
    ]
    for node in nodes:
        await node.start(train=False)
    try:
        yield Town(nodes)
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))
