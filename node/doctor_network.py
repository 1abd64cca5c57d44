"""Asking: the ports of this machine, this node if it runs, and other members (`shoal doctor`).

Nothing here judges. Names are looked up in threads that nobody waits for: a resolver that hangs
must not keep the command from ending.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import grpc

from shoal.node.addresses import split_address, split_peer
from shoal.node.aside import aside
from shoal.node.certificates import issue_leaf
from shoal.node.channels import open_channel, own_channel
from shoal.node.config import NodeSettings, Settings
from shoal.node.doctor_mesh import MeshFacts
from shoal.node.doctor_peers import AHEAD_S_MAX, PeerFacts
from shoal.node.doctor_ports import Port, PortFacts, dialable, try_port
from shoal.node.errors import PeerError, UserError
from shoal.node.identity import Identity
from shoal.node.inspect_client import StatusReply, ask_status, fetch_status
from shoal.node.look import NothingSeen, Sight, who_is_at
from shoal.node.look_back import LOOK_S_MAX
from shoal.node.look_wire import ask_to_look_back

PEERS_ASKED_MAX = 8
STATUS_S = 1.5
RESOLVE_S = 1.5
# A look takes so long at the most, and both ways take some time.
ASK_S = LOOK_S_MAX + 1.0
LEAF_S = 1.5


async def looked_up(address: str) -> str:
    """The address with a number for its name; raises NothingSeen where there is none in time."""
    try:
        host, port = split_address(address)
        found = await aside(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), RESOLVE_S
        )
    except (OSError, ValueError):
        raise NothingSeen(Sight.UNKNOWN_NAME) from None
    number = str(found[0][4][0])
    return f"[{number}]:{port}" if ":" in number else f"{number}:{port}"


@dataclass(frozen=True, slots=True)
class Here:
    """This node as it runs, if it does. running: None where its key could not be read."""

    ports: tuple[PortFacts, ...]
    status: StatusReply | None
    running: bool | None


async def look_here(places: NodeSettings, identity: Identity | None, clock: float) -> Here:
    """Try the node's ports, and find out who has those that are taken."""
    wanted = {
        "listen": places.listen,
        "join": places.join_listen,
        "inspect": places.inspect_listen,
        "metrics": places.metrics_listen,
    }
    ports = await asyncio.gather(*(_port(check, address) for check, address in wanted.items()))
    status = await _own_status(places, identity, clock)
    known = await asyncio.gather(*(_with_owner(facts, status) for facts in ports))
    if identity is None:
        return Here(tuple(known), status, None)
    running = any(facts.owner == identity.node_id for facts in known)
    if status is not None and status.node_id != identity.node_id.hex():
        status = None
    return Here(tuple(known), status, running)


async def _port(check: str, address: str) -> PortFacts:
    try:
        return await aside(lambda: try_port(check, address), RESOLVE_S)
    except TimeoutError:
        return PortFacts(check, address, Port.UNKNOWN_NAME)


async def _own_status(
    places: NodeSettings, identity: Identity | None, clock: float
) -> StatusReply | None:
    """From the port for this machine; where there is none, as the node itself from the members'."""
    with suppress(UserError):
        if places.inspect_listen:
            return await fetch_status(places.inspect_listen, deadline_s=STATUS_S)
        if identity is not None:
            async with own_channel(dialable(places.listen), identity, clock) as channel:
                return await ask_status(channel, places.listen, deadline_s=STATUS_S)
    return None


async def _with_owner(facts: PortFacts, status: StatusReply | None) -> PortFacts:
    if facts.port is not Port.TAKEN:
        return facts
    if facts.check in ("inspect", "metrics"):
        with suppress(ValueError):
            if status is not None:
                return replace(facts, owner=bytes.fromhex(status.node_id))
        return facts
    with suppress(NothingSeen):
        presented = await who_is_at(await looked_up(dialable(facts.address)), LEAF_S)
        return replace(facts, owner=presented.node_id)
    return facts


def members_to_ask(
    me: bytes,
    status: StatusReply | None,
    settings: Settings,
    founders: Sequence[tuple[bytes, str]],
) -> list[tuple[bytes, str]]:
    """Ids and addresses of other members, the likeliest to answer first, at most a few.

    What the running node knows is newest; else its settings and the founders are all there is.
    """
    known: dict[bytes, str] = {}
    peers = list(status.peers) if status is not None else []
    for peer in sorted(peers, key=lambda each: each.state != "connected"):
        with suppress(ValueError):
            if peer.address:
                known.setdefault(bytes.fromhex(peer.node_id), peer.address)
    if not known:
        told = [split_peer(each) for each in settings.node.peers]
        for node_id, address in (*told, *founders):
            known.setdefault(node_id, address)
    known.pop(me, None)
    return list(known.items())[:PEERS_ASKED_MAX]


async def ask_member(
    node_id: bytes, address: str, identity: Identity, now: Callable[[], float]
) -> PeerFacts:
    """Ask one member to look back; where it gives no answer, see who is at its address.

    The leaf shown is older than those that nodes make: it counts in the eyes of members from eight
    hours behind this clock to fifteen ahead, so that a wrong clock can be measured.
    """
    facts = PeerFacts(node_id, address)
    try:
        where = await looked_up(address)
    except NothingSeen as nothing:
        return replace(facts, sight=nothing.sight)
    leaf = issue_leaf(identity, now() - AHEAD_S_MAX)
    try:
        async with open_channel(where, node_id, leaf) as channel:
            asked = now()
            looked = await ask_to_look_back(channel, ASK_S)
            heard = now()
    except grpc.aio.AioRpcError as error:
        return await _see(replace(facts, refusal=error.code().name), where, now())
    except (PeerError, ValueError) as error:
        # An id that is no key, or an answer that is none.
        return replace(facts, refusal=str(error))
    ahead_s = ((looked.received - asked) + (looked.answered - heard)) / 2
    return replace(facts, looked=looked, ahead_s=ahead_s)


async def _see(facts: PeerFacts, where: str, now: float) -> PeerFacts:
    if facts.refusal in ("UNIMPLEMENTED", "PERMISSION_DENIED"):
        return facts
    try:
        presented = await who_is_at(where, LEAF_S)
    except NothingSeen as nothing:
        return replace(facts, sight=nothing.sight)
    if presented.node_id != facts.node_id:
        return replace(facts, sight=Sight.SOMEBODY_ELSE)
    leaf = (presented.not_before - now, presented.not_after - now)
    counts = leaf[0] <= 0 <= leaf[1]
    return replace(facts, sight=Sight.ANSWERS if counts else Sight.OUT_OF_DATE, leaf=leaf)


def mesh_facts(status: StatusReply, settings: Settings) -> MeshFacts:
    """What the node's own status says of the mesh."""
    consensus, training = status.consensus, status.training
    validators = [peer for peer in status.peers if peer.validator]
    missing = tuple(peer.node_id[:8] for peer in validators if peer.state != "connected")
    own = int(status.role == "validator")
    speed = training.tokens_per_second
    tokens = training.local_steps * settings.train.batch * settings.train.sequence
    return MeshFacts(
        role=status.role,
        validators=consensus.validators,
        quorum=consensus.quorum,
        reachable=len(validators) - len(missing) + own,
        missing=missing,
        view_active=consensus.view_active,
        commit_s=consensus.commit_seconds,
        uptime_s=status.uptime_seconds,
        rounds_per_checkpoint=training.rounds_per_checkpoint,
        round_s=tokens / speed if speed > 0 else 0.0,
        training=training.state,
    )


def refused_for_protocol(status: StatusReply | None) -> list[tuple[str, str]]:
    """Members whose links this node refused because they speak another version, and the words."""
    peers = status.peers if status is not None else ()
    return [(p.node_id[:8], p.last_error) for p in peers if "wrong-protocol" in p.last_error]
