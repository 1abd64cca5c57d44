"""Closed rounds: what deltas count for when the set of a round is agreed before it is added.

    clip_t  = min(committed clip_t, median norm of tensor t in this round)
    trust_j = max(0, cos(q_j, m)) + .001, divided by the mean, between .1 and 2
    m       <- .9 m + sum_j w_j trust_j q_j

An attacker that pulls against where the mesh has been going loses its weight; one that is merely
loud is as loud as the median. The floor keeps an honest minority, whose text is unlike all other,
from being muted. Only the weights and the radius of an epoch change, so what is added is still the
integers of anchor.py. Dot products are `math.fsum` of element-wise fp64 products: correctly
rounded, hence the same bits on every machine.

Source: median clip and momentum-cosine trust of reference/algorithms.md 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta
from shoal.gossip.parameters import EpochParameters, clip_scales, median_clip, message_norms
from shoal.gossip.weights import step_factor

DECAY = 0.9
LEAST = 1e-3
FLOOR, CAP = 0.1, 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Heading:
    """Where the mesh has been going: m, float64 [P]; part of the replicated state."""

    momentum: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """One delta of the round: whose it is, its steps, and the parameters of the epoch it names."""

    sender: bytes
    delta: SparseDelta
    epoch: EpochParameters
    steps: int

    @property
    def factor(self) -> float:
        """What its steps make it count for."""
        return step_factor(self.epoch.steps, self.steps)


class Worth(NamedTuple):
    """What a delta counts for: its weight, and the clip factor of each tensor, float64 [T]."""

    weight: float
    scales: NDArray[np.float64]


def close_round(voices: Sequence[Voice], heading: Heading) -> tuple[list[Worth], Heading]:
    """What each delta counts for, in the order given, and the new heading.

    `voices` must stand in an order that everybody has alike; heading.momentum is not changed.
    """
    norms = np.stack([message_norms(voice.delta) * voice.factor for voice in voices])
    radius = np.array(median_clip((math.inf,) * norms.shape[1], norms, 1.0))
    clipped = {
        voice.epoch.height: replace(
            voice.epoch, clip=tuple(np.minimum(voice.epoch.clip, radius).tolist())
        )
        for voice in voices
    }
    scales = [
        clip_scales(clipped[voice.epoch.height], voice.delta, voice.steps) for voice in voices
    ]
    values = [
        voice.delta.values(scale).astype(np.float64)
        for voice, scale in zip(voices, scales, strict=True)
    ]
    trust = _trust([voice.delta for voice in voices], values, heading)
    momentum = heading.momentum * DECAY
    worth = []
    for voice, scale, value, factor in zip(voices, scales, values, trust, strict=True):
        weight = min(1.0, voice.epoch.weight_of(voice.sender) * factor) * voice.factor
        momentum[voice.delta.indices] += value * weight
        worth.append(Worth(weight, scale))
    return worth, Heading(momentum)


def _trust(
    deltas: Sequence[SparseDelta], values: Sequence[NDArray[np.float64]], heading: Heading
) -> list[float]:
    ahead = math.sqrt(math.fsum(heading.momentum * heading.momentum))
    raw = []
    for delta, value in zip(deltas, values, strict=True):
        norm = math.sqrt(math.fsum(value * value))
        along = math.fsum(value * heading.momentum[delta.indices])
        cosine = along / (norm * ahead) if norm > 0.0 and ahead > 0.0 else 0.0
        raw.append(max(0.0, cosine) + LEAST)
    mean = math.fsum(raw) / len(raw)
    return [min(CAP, max(FLOOR, value / mean)) for value in raw]
