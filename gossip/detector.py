"""Who is alive: SWIM with Lifeguard, for members that know each other and hold links.

Several times an interval a node probes a member (probes.py). One that answers nobody becomes
suspect; the suspicion is signed and spreads on the back of everything else that is said
(hearsay.py). It ends when the subject proves its life, or in a verdict (suspicion.py). Each node
comes to its own: no message says "dead", so nobody can be declared dead by others.

An ended link is a fast hint: the kernel of a killed process closes its connections at once. It only
makes the node look sooner and wait less, never conclude. Deadlines are learned, and the time that
this process itself stood still never counts against others (patience.py).

The result is a hint for everything around consensus, and nothing for consensus itself: safety
never depends on it. `step(now, event)` gives effects, to be carried out in order; there is no
clock, no I/O and no randomness of its own here. What it remembers is bounded by the member list.
"""

import random
from typing import TypeAlias

from shoal.gossip.eyes import DetectorSettings, Effect, Eyes
from shoal.gossip.hearsay import Hearsay
from shoal.gossip.liveness import Heard, Members, Opinion, Sign, State, Tick, Verify
from shoal.gossip.patience import RoundTrips
from shoal.gossip.probes import Probes
from shoal.gossip.relay_events import LinkDown, LinkUp
from shoal.gossip.suspicion import Case

TICK_S = 0.1

Event: TypeAlias = Members | LinkUp | LinkDown | Heard | Tick


class Detector:
    """One node's failure detector."""

    def __init__(
        self,
        *,
        me: bytes,
        mesh_id: bytes,
        incarnation: int,
        settings: DetectorSettings,
        rng: random.Random,
        sign: Sign,
        verify: Verify,
    ) -> None:
        """`incarnation` is above all that this key ever used (liveness.first_incarnation)."""
        self._eyes = Eyes(me, mesh_id, settings, rng, sign, verify)
        self._probes = Probes(self._eyes)
        self._hearsay = Hearsay(self._eyes, incarnation, self._probes.probe)
        self._probes.hearsay = self._hearsay

    @property
    def health_factor(self) -> int:
        """By how much this node distrusts its own senses: 1, all is well, to 9."""
        return self._eyes.health.factor

    def state(self, member: bytes) -> State:
        """What this node takes `member` for; a stranger is nobody's concern, so alive."""
        case = self._eyes.cases.get(member)
        return State.ALIVE if case is None else case.state

    def opinions(self) -> dict[bytes, Opinion]:
        """What this node thinks of every other member, as of the last step, and why."""
        eyes, found = self._eyes, {}
        for member, case in sorted(eyes.cases.items()):
            others, reached = eyes.others(case)
            found[member] = case.opinion(
                eyes.awake, others=others, patience=eyes.settings.patience, reached=reached
            )
        return found

    def step(self, now: float, event: Event) -> list[Effect]:
        """Take in one event; `now` in seconds never decreases, a Tick is due every TICK_S."""
        eyes = self._eyes
        eyes.now = now
        if eyes.clock.advance(now) > 0:
            eyes.health.worse()
        match event:
            case Members(everybody, hubs):
                self._set_members(everybody, hubs)
            case LinkUp(peer) if peer in eyes.cases:
                eyes.linked.add(peer)
                eyes.prove_alive(eyes.cases[peer])
                self._hearsay.greet(peer)
            case LinkDown(peer) if peer in eyes.linked:
                eyes.linked.remove(peer)
                eyes.cases[peer].link_ended(eyes.awake)
                self._probes.probe(eyes.cases[peer])
            case Heard(peer, message) if peer in eyes.linked:
                self._hearsay.hear(message.rumours)
                self._probes.hear(peer, message)
            case Tick():
                self._hearsay.tick()
                self._probes.tick()
                eyes.touched.update(m for m, case in eyes.cases.items() if case.is_open)
        eyes.judge(eyes.touched)
        eyes.touched.clear()
        self._hearsay.flush()
        effects, eyes.effects = eyes.effects, []
        return effects

    def _set_members(self, everybody: frozenset[bytes], hubs: frozenset[bytes]) -> None:
        eyes = self._eyes
        eyes.hubs = hubs
        others = everybody - {eyes.me}
        for member in eyes.cases.keys() - others:
            eyes.alive.discard(member)
            eyes.linked.discard(member)
            del eyes.cases[member]
        for member in sorted(others - eyes.cases.keys()):
            trips = RoundTrips(elsewhere=eyes.round_trips)
            eyes.cases[member] = Case(member, eyes.awake, round_trips=trips)
