"""Leaving in good order: of what lies here, others have enough copies before this node goes.

Copies are pulled, never pushed, by those whose turn it is among the members (retention.py). So who
wants to leave tells the others that they should count without it, goes on serving, and asks what
they hold until each piece has its r copies elsewhere. Who is told forgets it after a while: nothing
has to be taken back when the operator changes their mind.

The operator's command does this with the node's own key (operator.py); the node only has to be up.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from shoal.consensus.quorum import faults
from shoal.gossip.placement import copies
from shoal.node import bulk
from shoal.node.certificates import issue_leaf
from shoal.node.channels import open_channel
from shoal.node.errors import PeerError
from shoal.node.holdings import Holdings
from shoal.node.identity import Identity
from shoal.node.links import Links
from shoal.node.retention import DELTA_LOG, Piece
from shoal.node.strict import strict_stub
from shoal.proto.mesh_pb2 import FarewellRequest

if TYPE_CHECKING:
    from shoal.node.bulk import Stub

# For so long a member that said farewell is not counted among those who keep pieces.
FAREWELL_HOLDS_S = 120.0
SAY_AGAIN_S = 30.0
LOOK_S = 1.0
ASK_TIMEOUT_S = 5.0


def farewell(links: Links, member: bytes) -> None:
    """A member has said that it is about to leave."""
    now = asyncio.get_running_loop().time()
    links.record(member).leaving_until = now + FAREWELL_HOLDS_S


def leaving(links: Links) -> frozenset[bytes]:
    """Those who have said so lately."""
    now = asyncio.get_running_loop().time()
    return frozenset(peer for peer, known in links.peers.items() if now < known.leaving_until)


@dataclass(frozen=True, slots=True)
class Estate:
    """What a node that leaves has to see to.

    pieces: what lies here of the archive and is retained; manifests: the chunk addresses of each
    of their heights; others: the other members, and where they are; copies: r.
    """

    pieces: frozenset[Piece]
    manifests: Mapping[int, tuple[bytes, ...]]
    others: Mapping[bytes, str]
    copies: int


@dataclass(frozen=True, slots=True)
class Outstanding:
    """pieces: not kept often enough elsewhere; silent: members that did not say what they hold."""

    pieces: int
    silent: frozenset[bytes]


def outstanding(estate: Estate, said: Mapping[bytes, Collection[Piece]]) -> Outstanding:
    """What is left to do; said: what each member that answered holds.

    Where fewer than r others are there at all, all of them have to.
    """
    silent = frozenset(estate.others.keys() - said.keys())
    wanted = min(estate.copies, len(estate.others))
    kept = Counter(piece for pieces in said.values() for piece in set(pieces))
    return Outstanding(sum(kept[piece] < wanted for piece in estate.pieces), silent)


def estate_of(
    holdings: Holdings, heights: Collection[int], *, others: Mapping[bytes, str], validators: int
) -> Estate:
    """Look at what lies on this node's disk of these heights (blocks)."""
    manifests, held = holdings.pieces(heights)
    # What is not known to be of a height nobody can be asked for.
    pieces = frozenset(piece for piece in held if piece.height in manifests)
    return Estate(pieces, manifests, others, copies(faults(validators)))


async def hand_over(
    estate: Estate,
    *,
    identity: Identity,
    mesh_id: bytes,
    limit_s: float,
    report: Callable[[Outstanding], None],
) -> Outstanding:
    """Say farewell to all, and wait until nothing is outstanding, or for `limit_s`.

    report: called after each look. Returns what is left.
    """
    loop = asyncio.get_running_loop()
    leaf = issue_leaf(identity, time.time())
    async with AsyncExitStack() as stack:
        stubs = {}
        for member, address in estate.others.items():
            channel = open_channel(address, member, leaf)
            stubs[member] = strict_stub(await stack.enter_async_context(channel))
        give_up_at, say_at = loop.time() + limit_s, loop.time()
        told: list[bool] = []
        while True:
            if loop.time() >= say_at:
                told = await asyncio.gather(*(_say_farewell(stub) for stub in stubs.values()))
                say_at = loop.time() + SAY_AGAIN_S
            answers = await asyncio.gather(
                *(_holdings(stub, mesh_id, estate.manifests) for stub in stubs.values())
            )
            # Who still counts on this node may yet drop what it says it holds.
            said = {
                member: held
                for member, held, knows in zip(stubs, answers, told, strict=True)
                if held is not None and knows
            }
            left = outstanding(estate, said)
            report(left)
            if not left.pieces or loop.time() >= give_up_at:
                return left
            await asyncio.sleep(LOOK_S)


async def _say_farewell(stub: "Stub") -> bool:
    try:
        await stub.Farewell(FarewellRequest(), timeout=ASK_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        return False
    return True


async def _holdings(
    stub: "Stub", mesh_id: bytes, manifests: Mapping[int, tuple[bytes, ...]]
) -> set[Piece] | None:
    """What a member says that it holds of these heights; None where it does not answer."""
    found: set[Piece] = set()
    for height, addresses in manifests.items():
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                held = await bulk.fetch_holdings(stub, mesh_id, height, addresses)
        except bulk.NotHeld:
            continue
        except (TimeoutError, bulk.FetchFailed, PeerError):
            return None
        found |= {Piece(height, address) for address in held.addresses}
        if held.delta_log:
            found.add(Piece(height, DELTA_LOG))
    return found
