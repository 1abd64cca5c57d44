"""What the parts of a failure detector share: members as seen from here, clock, key, effects."""

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TypeAlias

from shoal.gossip.liveness import Changed, Sign, State, Tell, Verify
from shoal.gossip.patience import AwakeClock, LocalHealth, RoundTrips
from shoal.gossip.suspicion import Case

Effect: TypeAlias = Tell | Changed


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSettings:
    """How hard to look.

    patience: multiplies every deadline; interval_s and probes: a node probes that many members per
    interval, so in a mesh of any size each one is probed that often on average; relays: who is
    asked for a detour; fanout: who is told news at once.
    """

    patience: float = 1.0
    interval_s: float = 1.0
    probes: int = 3
    relays: int = 3
    fanout: int = 4


@dataclass(slots=True)
class Eyes:
    """One node's view. `sign(bytes)` signs with its key, `verify(key, bytes, signature)` checks.

    now: the real clock at this step; hubs: those that every member keeps a link to; linked: the
    neighbours with a link now; touched: members to judge again at the end of this step.
    """

    me: bytes
    mesh_id: bytes
    settings: DetectorSettings
    rng: random.Random
    sign: Sign
    verify: Verify
    now: float = 0.0
    clock: AwakeClock = field(default_factory=AwakeClock)
    health: LocalHealth = field(default_factory=LocalHealth)
    cases: dict[bytes, Case] = field(default_factory=dict)
    hubs: frozenset[bytes] = frozenset()
    linked: set[bytes] = field(default_factory=set)
    # Those that this node takes for alive, and the round trips to all of them.
    alive: set[bytes] = field(default_factory=set)
    round_trips: RoundTrips = field(default_factory=RoundTrips)
    touched: set[bytes] = field(default_factory=set)
    effects: list[Effect] = field(default_factory=list)

    @property
    def awake(self) -> float:
        """Seconds that this process has been running."""
        return self.clock.awake_s

    def deadline_s(self, member: bytes) -> float:
        """How long to wait for a member's answer now."""
        learned = self.cases[member].round_trips.deadline_s()
        return self.settings.patience * self.health.factor * learned

    def prove_alive(self, case: Case) -> None:
        """Whatever spoke against this member is over."""
        case.proved_alive(self.awake)
        self.touched.add(case.member)

    def judge(self, members: Collection[bytes]) -> None:
        """Say what these members are taken for now, where that has changed."""
        # One at a time, because each verdict changes who is left to confirm the next.
        for member in sorted(members):
            case = self.cases.get(member)
            if case is None:
                continue
            others, reached = self.others(case)
            patience = self.settings.patience
            before = case.state
            case.state = case.judge(
                self.awake, others=others, patience=patience, enough_reached=reached
            )
            if case.state is not before:
                (self.alive.add if case.state is State.ALIVE else self.alive.discard)(member)
                opinion = case.opinion(
                    self.awake, others=others, patience=patience, reached=reached
                )
                self.effects.append(Changed(opinion))

    def others(self, case: Case) -> tuple[int, bool]:
        """How many could confirm a suspicion of it; whether half of the mesh is reached."""
        alive = len(self.alive)
        return alive - (case.member in self.alive), 2 * (alive + 1) >= len(self.cases) + 1
