"""Whom to keep links to: the neighbours that the member list gives, and all validators.

Where neighbours are dead in this node's opinion, those come in that would be neighbours without
them, so that the graph stays as dense as it is meant to be; the dead are dialled all the same,
which is how their return is noticed.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping

from shoal.consensus.members import Member
from shoal.gossip.topology import neighbours
from shoal.node.consensus_driver import ConsensusDriver
from shoal.node.links import Links

DIAL_INTERVAL_S = 2.0


def targets(
    members: Mapping[bytes, Member],
    validators: Collection[bytes],
    dead: Collection[bytes],
    *,
    me: bytes,
    mesh_id: bytes,
    degree: int,
) -> dict[str, bytes]:
    """Addresses to dial, with the id that must answer there."""
    living = [member for member in members if member not in dead]
    wanted = {
        *neighbours(members, me, mesh_id, degree),
        *neighbours(living, me, mesh_id, degree),
        *validators,
    }
    return {members[peer].address: peer for peer in sorted(wanted - {me}) if peer in members}


async def keep_dialling(
    links: Links,
    consensus: ConsensusDriver,
    dead: Callable[[], Collection[bytes]],
    *,
    me: bytes,
    degree: int,
    told: Mapping[bytes, str],
) -> None:
    """Keep links to whom the ledger of this moment gives, for ever.

    told: members and where they are, as this node was told; tried while it has no link at all.
    """
    while True:
        replica = consensus.replica
        members, validators = replica.ledger.members, replica.validators
        wanted = targets(
            members, validators.keys, dead(), me=me, mesh_id=validators.mesh_id, degree=degree
        )
        if not links.connected:
            for peer, address in told.items():
                wanted.setdefault(address, peer)
        links.dial(wanted)
        await asyncio.sleep(DIAL_INTERVAL_S)
