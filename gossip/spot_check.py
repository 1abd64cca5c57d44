"""Whether what a member says makes the model worse: one member a cut, on text of one's own.

Let a cut bring the model from A to B, of which a member's deltas are c, or C = c / trust if it were
believed wholly: a member that trust (alignment.py) has muted to a tenth harms nobody any more, but
goes on lying. Every node draws the same member and measures, on batches that it holds out,

    among the others    d = loss(B - c + C) - loss(B - c)
    alone               d = loss(A + C) - loss(A)

batch by batch, both models on the same one, so that what differs is the member and not the text. It
is harmful where the mean of d is above the floor and above five of its standard errors, in both:
where all together go too far the model is better without any one of them, and where steps are
noisy each makes worse alone what all make better together. And only where the others, B - c, have
made A better: in a mesh that goes astray nobody is to blame (docs/adr/0027).

Two harmful verdicts with no harmless one between them, among this node's last 64 checks, are an
objection: an opinion, which matters only together with others' (consensus/changes.py).

Source: the loss spot-check of reference/algorithms.md 4, after Gauntlet's LossScore.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.gossip.alignment import FULL_PERMILLE

STANDARD_ERRORS = 5
# Nats per token, or whatever a task's loss is in: less harm than that is not worth a member.
HARM_FLOOR = 0.005
# With fewer batches nobody knows how much chance there is.
BATCHES_MIN = 4
STRIKES_OUT = 2
STRIKES_KEPT_CHECKS = 64
STEP_MAX = 2**31 - 1


def draw(digest: bytes, height: int, trust: Mapping[bytes, int]) -> bytes:
    """Whom everybody checks after a cut.

    digest: of the committed record, which nobody knows before all its deltas are made; trust: in
    permille, of each member that said something in the cut, at least one. At even heights one of
    those that are not believed wholly, if there are any; at odd ones anybody, so that suspects are
    looked at first and nobody is never looked at.
    """
    suspects = [member for member, permille in trust.items() if permille < FULL_PERMILLE]
    candidates = sorted(suspects if suspects and height % 2 == 0 else trust)
    number = hashlib.sha256(b"SHOAL-SPOT-CHECK\x01" + digest).digest()
    return candidates[int.from_bytes(number, "big") % len(candidates)]


def louder(increments: NDArray[np.int32], trust_permille: int) -> NDArray[np.int32]:
    """What a delta would subtract from the anchor if its sender were believed wholly: int32."""
    exact = np.rint(increments * (FULL_PERMILLE / trust_permille))
    steps: NDArray[np.int32] = np.clip(exact, -STEP_MAX, STEP_MAX).astype(np.int32)
    return steps


class Comparison(NamedTuple):
    """What a member's word costs on one node's text. nats: the mean of d over the batches;
    error: its standard error. Infinity and 0 where the word breaks the model."""

    nats: float
    error: float

    @property
    def is_harmful(self) -> bool:
        return self.nats > max(HARM_FLOOR, STANDARD_ERRORS * self.error)


HARMLESS = Comparison(0.0, 0.0)


def compare(said: Sequence[float], without: Sequence[float]) -> Comparison | None:
    """The losses of both models, batch by batch; None where nothing can be said."""
    assert len(said) == len(without), "the two are measured on the same batches"
    if len(without) < BATCHES_MIN or not all(map(math.isfinite, without)):
        return None
    if not all(map(math.isfinite, said)):
        return Comparison(math.inf, 0.0)
    differences = [one - other for one, other in zip(said, without, strict=True)]
    return Comparison(fmean(differences), stdev(differences) / math.sqrt(len(differences)))


def others_progressed(before: Sequence[float], without: Sequence[float]) -> bool:
    """Whether the others of a cut made the model better; losses batch by batch."""
    return fmean(without) < fmean(before)


class Strikes:
    """One node's memory of its verdicts. Bounded: strikes are forgotten after so many checks."""

    def __init__(self) -> None:
        self._checks = 0
        # The checks at which each member was found harmful, since it last was not.
        self._struck: dict[bytes, tuple[int, ...]] = {}

    def judge(self, member: bytes, *, harmful: bool) -> None:
        """Note a verdict; a harmless one forgives all before it."""
        self._checks += 1
        struck = self._struck.pop(member, ())
        if harmful:
            self._struck[member] = (*struck, self._checks)[-STRIKES_OUT:]
        oldest = self._checks - STRIKES_KEPT_CHECKS
        kept = {who: tuple(c for c in checks if c > oldest) for who, checks in self._struck.items()}
        self._struck = {who: checks for who, checks in kept.items() if checks}

    def of(self, member: bytes) -> int:
        """How many strikes it has, from 0 to 2."""
        return len(self._struck.get(member, ()))

    def objected(self) -> tuple[bytes, ...]:
        """Those whom this node is for putting out."""
        return tuple(who for who, checks in self._struck.items() if len(checks) == STRIKES_OUT)
