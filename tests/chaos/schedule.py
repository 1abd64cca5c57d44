"""What goes wrong when: a list of faults that a seed draws before anything runs.

All faults end by themselves. Several may be active at once, and more than f nodes may be out of
service together: then no commit is expected until enough of them are back. A node has at most
one fault of its process at a time; faults of links add up.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Seconds between the beginnings of two faults; the larger one is the promise of the run.
GAP_S = (4.0, 9.0)
# How long a killed node stays away and any other fault lasts.
AWAY_S = (0.5, 4.0)
LASTS_S = (2.0, 10.0)

PROCESS_FAULTS = ("kill", "pause")
# Heavier ones first: how often each is drawn, relative to the others.
WEIGHTS = {
    "kill": 3,
    "pause": 2,
    "partition": 3,
    "one-way": 2,
    "loss": 2,
    "delay": 2,
    "rate": 1,
}
LOSS = (0.1, 0.3)
DELAY_S = (0.02, 0.3)
RATE_BYTES_S = (30_000.0, 125_000.0)

# A link has a direction: from one node's index to another's.
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `nodes` for kill and pause, `pairs` for everything that links suffer."""

    kind: str
    at_s: float
    lasts_s: float
    nodes: tuple[int, ...] = ()
    pairs: tuple[Pair, ...] = ()
    # Share of packets lost, seconds of delay, or bytes per second; 0 where it means nothing.
    amount: float = 0.0

    @property
    def ends_s(self) -> float:
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        where = ",".join(f"node{index}" for index in self.nodes) or " ".join(
            f"{source}>{target}" for source, target in self.pairs
        )
        amount = f" {self.amount:.3g}" if self.amount else ""
        return f"{self.at_s:6.1f} s {self.kind}{amount} for {self.lasts_s:.1f} s: {where}"


def draw_schedule(seed: int, *, nodes: int, seconds: float, kinds: Sequence[str]) -> list[Fault]:
    """The faults of a run in order of their beginnings; the last one ends within `seconds`."""
    chance = random.Random(f"chaos/{seed}/{nodes}/{seconds}/{','.join(sorted(kinds))}")
    faults: list[Fault] = []
    at_s = 0.0
    while True:
        at_s += chance.uniform(*GAP_S)
        fault = _draw_fault(chance, at_s, nodes, faults, sorted(kinds))
        if fault.ends_s > seconds:
            return faults
        faults.append(fault)


def _draw_fault(
    chance: random.Random, at_s: float, nodes: int, earlier: list[Fault], kinds: list[str]
) -> Fault:
    (kind,) = chance.choices(kinds, [WEIGHTS[kind] for kind in kinds])
    lasts_s = chance.uniform(*(AWAY_S if kind == "kill" else LASTS_S))
    if kind in PROCESS_FAULTS:
        # A restart takes a while; who came back a moment ago is left alone.
        busy = {n for f in earlier if at_s < f.ends_s + AWAY_S[1] for n in f.nodes}
        free = [node for node in range(nodes) if node not in busy]
        if free:
            # Now and then the whole quorum goes at once.
            count = min(len(free), chance.choice((1, 1, 1, 2)))
            chosen = tuple(sorted(chance.sample(free, count)))
            return Fault(kind, at_s, lasts_s, nodes=chosen)
        kind = chance.choice([kind for kind in kinds if kind not in PROCESS_FAULTS])
    return Fault(
        kind,
        at_s,
        lasts_s,
        pairs=_draw_pairs(chance, kind, nodes),
        amount=_draw_amount(chance, kind),
    )


def _draw_pairs(chance: random.Random, kind: str, nodes: int) -> tuple[Pair, ...]:
    everybody = range(nodes)
    if kind == "partition":
        side = set(chance.sample(everybody, chance.randint(1, max(1, nodes // 2))))
        crossing = [(a, b) for a in everybody for b in everybody if (a in side) != (b in side)]
        return tuple(crossing)
    victim = chance.choice(everybody)
    others = [node for node in everybody if node != victim]
    if kind == "one-way":
        # Either nobody hears the victim or the victim hears nobody.
        deaf = chance.random() < 0.5
        return tuple((other, victim) if deaf else (victim, other) for other in others)
    if kind == "rate":
        return tuple((victim, other) for other in others)
    return tuple(pair for other in others for pair in ((victim, other), (other, victim)))


def _draw_amount(chance: random.Random, kind: str) -> float:
    bounds = {"loss": LOSS, "delay": DELAY_S, "rate": RATE_BYTES_S}.get(kind)
    return chance.uniform(*bounds) if bounds else 0.0


def longest_gap_s(faults: Sequence[Fault]) -> float:
    """The longest time between the beginnings of two faults."""
    return max((later.at_s - sooner.at_s for sooner, later in pairwise(faults)), default=0.0)
