"""Drives the failure detector: its clock, its chance, its key; carries out what it decides.

Nothing in consensus asks it anything: a wrong opinion costs a detour, never an agreement. Who is
dead is not asked for deltas and pieces (and what was asked of it is asked of others), its places in
the graph of neighbours are filled, and after a while its share of the archive is kept by others.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection

import structlog

from shoal.gossip.detector import TICK_S, Detector, Event
from shoal.gossip.eyes import DetectorSettings
from shoal.gossip.liveness import (
    Changed,
    Evidence,
    Heard,
    Members,
    Message,
    Opinion,
    State,
    Tell,
    Tick,
    first_incarnation,
)
from shoal.gossip.relay_events import LinkDown, LinkUp
from shoal.node.consensus_driver import ConsensusDriver
from shoal.node.gossip_driver import GossipDriver
from shoal.node.identity import Identity, short, verify
from shoal.node.links import Links

log = structlog.get_logger()

# A member that is dead for so long loses its places in the archive; a restart is much shorter.
LOST_AFTER_S = 120.0


class FailureDetection:
    """One node's detector, running."""

    def __init__(
        self,
        *,
        identity: Identity,
        mesh_id: bytes,
        boot: int,
        patience: float,
        links: Links,
        members: Callable[[], Collection[bytes]],
        hubs: Callable[[], Collection[bytes]],
        on_dead: Callable[[bytes], None],
    ) -> None:
        """members, hubs: as of now, hubs are those that everybody links to; boot: a count of this
        key's starts; on_dead: is told of each death in this node's opinion."""
        self._links = links
        self._members = members
        self._hubs = hubs
        self._on_dead = on_dead
        self._known: Members | None = None
        self._dead_since: dict[bytes, float] = {}
        self._detector = Detector(
            me=identity.node_id,
            mesh_id=mesh_id,
            incarnation=first_incarnation(boot),
            settings=DetectorSettings(patience=patience),
            rng=random.Random(),
            sign=identity.sign,
            verify=verify,
        )

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            self._follow_members()
            self._step(Tick())
            await asyncio.sleep(TICK_S)

    def link_up(self, peer: bytes) -> None:
        """A neighbour has proved who it is."""
        self._follow_members()
        self._step(LinkUp(peer))

    def link_down(self, peer: bytes) -> None:
        """The last link to a neighbour has ended, whoever ended it."""
        self._step(LinkDown(peer))

    def received(self, peer: bytes, message: Message) -> None:
        """A neighbour sent a message of failure detection."""
        self._step(Heard(peer, message))

    def opinions(self) -> dict[bytes, Opinion]:
        """What this node thinks of every other member, and why."""
        return self._detector.opinions()

    def state(self, member: bytes) -> State:
        """What this node takes a member for."""
        return self._detector.state(member)

    def states(self) -> dict[bytes, str]:
        """What this node takes every member for, as words."""
        members = self._known.everybody if self._known is not None else frozenset()
        return {member: str(self._detector.state(member)) for member in members}

    @property
    def dead(self) -> frozenset[bytes]:
        """Members that are dead in this node's opinion."""
        return frozenset(self._dead_since)

    @property
    def lost(self) -> frozenset[bytes]:
        """Those that have been for LOST_AFTER_S."""
        now = time.monotonic()
        return frozenset(m for m, at in self._dead_since.items() if now - at >= LOST_AFTER_S)

    def _follow_members(self) -> None:
        now = Members(frozenset(self._members()), frozenset(self._hubs()))
        if now == self._known:
            return
        before, self._known = self._known, now
        self._step(now)
        for peer in list(self._dead_since.keys() - now.everybody):
            del self._dead_since[peer]
        # A link may be older than the membership of who is at its other end.
        for peer in self._links.connected:
            if before is None or peer not in before.everybody:
                self._step(LinkUp(peer))

    def _step(self, event: Event) -> None:
        for effect in self._detector.step(time.monotonic(), event):
            match effect:
                case Tell(peer, message):
                    self._links.send(peer, message)
                case Changed(opinion):
                    self._changed(opinion)

    def _changed(self, opinion: Opinion) -> None:
        peer, state = opinion.member, opinion.state
        log.info(f"peer.{state}", peer=short(peer), why=why(opinion))
        if state is State.DEAD:
            self._dead_since[peer] = time.monotonic()
            self._on_dead(peer)
        else:
            self._dead_since.pop(peer, None)


def detection_of_node(
    *,
    identity: Identity,
    boot: int,
    patience: float,
    links: Links,
    consensus: ConsensusDriver,
    gossip: GossipDriver,
) -> FailureDetection:
    """The detector of a running node: members and validators are those of its ledger."""
    return FailureDetection(
        identity=identity,
        mesh_id=consensus.replica.validators.mesh_id,
        boot=boot,
        patience=patience,
        links=links,
        members=lambda: consensus.replica.ledger.members,
        hubs=lambda: consensus.replica.validators.keys,
        on_dead=gossip.ask_others,
    )


def why(opinion: Opinion) -> str:
    """One line: which probe, how late, who confirms it, and what keeps a verdict back."""
    parts = []
    match opinion.evidence:
        case Evidence.RESET:
            parts.append(f"its link ended {opinion.silent_s:.1f} s ago and was not made again")
        case Evidence.SILENT:
            parts.append(
                f"no answer for {opinion.silent_s:.1f} s, a probe is given "
                f"{opinion.deadline_s * 1000:.0f} ms"
            )
        case Evidence.UNHEARD:
            parts.append("never heard from since this node started")
    if opinion.relays:
        asked = ", ".join(f"{short(relay)} {said}" for relay, said in opinion.relays)
        parts.append(f"nor through others ({asked})")
    if opinion.accusers:
        names = ", ".join(short(accuser) for accuser in opinion.accusers)
        enough = f" of {opinion.needed} needed" if opinion.evidence else ", this node reaches it"
        parts.append(f"confirmed by {names}{enough}")
    if opinion.state is State.SUSPECT and opinion.evidence:
        parts.append(f"dead after {opinion.timeout_s:.1f} s")
    if opinion.note:
        parts.append(opinion.note)
    return "; ".join(parts)
