"""What deltas of one epoch are worth: gain, weights, clip radius, density.

One EpochParameters is committed with every checkpoint and is in force for the deltas made under
that height. Members compute the next one from the deltas of the cut and compare bytes, so every
step is deterministic: integers where sums are taken, element-wise fp64 where not (IEEE 754 fixes
the bits of one product, one sum of two, one square root; it does not fix a long sum).

    alpha   = 1.6 clip(kappa, 1, sqrt(n)) g, 1 for n = 1    kappa: gain.py, g: weights.pace_gain
    clip_t  = clip_factor * median of the norms of tensor t in the cut
    weights = |D_i| / (S_i C_i) * trust_i, normalised, at most 3/n     weights.py, alignment.py
    steps   = mean of the members' steps of a delta, or 0              weights.py

Source: reference/algorithms.md 1.4 (gain, clip), 1.6 (weights).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from struct import Struct, error, pack, unpack_from

import numpy as np
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta
from shoal.compression.frame import Frame
from shoal.compression.layout import CHUNK
from shoal.gossip.alignment import FULL_PERMILLE, next_trust
from shoal.gossip.anchor import increments
from shoal.gossip.delta import COUNTER_MAX, DeltaHeader
from shoal.gossip.errors import DeltaError, GossipError
from shoal.gossip.gain import Contribution, measure_gain
from shoal.gossip.schema import TENSORS_MAX, ModelSchema
from shoal.gossip.weights import (
    Member,
    objective_weights,
    pace_gain,
    step_factor,
    usual_steps,
)

__all__ = [
    "Contribution",
    "EpochParameters",
    "Member",
    "clip_scales",
    "contribution_of",
    "genesis_parameters",
    "median_clip",
    "message_norms",
    "next_parameters",
]

MEMBERS_MAX = 1024
# height, tokens, alpha, kept per chunk, members, tensors, steps
FIXED = Struct(">QQdHHHI")
MEMBER = Struct(">32sdH")
# 59,426 bytes: below the 64 KiB that a checkpoint record has room for.
PARAMETERS_BYTES_MAX = FIXED.size + MEMBERS_MAX * MEMBER.size + TENSORS_MAX * 8
# Measured: more than restores the length learns faster, since a delta is as short as the noise in
# it makes it (docs/adr/0025).
GAIN = 1.6


@dataclass(frozen=True)
class EpochParameters:
    """In force for deltas whose header names `height`.

    weights: (member, weight) in ascending order of ids; trust: what each is believed, in permille,
    which its weight contains already; clip: the largest norm of each tensor of
    a message, infinity where there is no limit yet; tokens: all that were ever committed; steps:
    the usual ones of a delta, 0 where deltas count whatever their steps are.
    """

    height: int
    alpha: float
    weights: tuple[tuple[bytes, float], ...]
    clip: tuple[float, ...]
    kept_per_chunk: int
    tokens: int
    trust: tuple[int, ...]
    steps: int = 0

    def __post_init__(self) -> None:
        ids = [member for member, _ in self.weights]
        ascending = all(a < b for a, b in pairwise(ids))
        if not 1 <= len(ids) <= MEMBERS_MAX or not ascending or {len(i) for i in ids} != {32}:
            raise GossipError("bad-parameters", "members are not distinct ids in order")
        if len(self.trust) != len(ids) or not all(1 <= t <= FULL_PERMILLE for t in self.trust):
            raise GossipError("bad-parameters", "trust is not 1 to 1000 for each member")
        # Chained comparisons are false for NaN, so NaN is refused as well.
        if not all(0.0 <= weight <= 1.0 for _, weight in self.weights):
            raise GossipError("bad-parameters", "a weight is not between 0 and 1")
        if not 1 <= len(self.clip) <= TENSORS_MAX or not all(
            0.0 < c <= math.inf for c in self.clip
        ):
            raise GossipError("bad-parameters", "a clip radius is not above 0")
        if not 0.0 < self.alpha < math.inf or not 1 <= self.kept_per_chunk <= CHUNK:
            raise GossipError("bad-parameters", "gain or density out of range")
        if not 0 <= self.height <= COUNTER_MAX or not 0 <= self.tokens <= COUNTER_MAX:
            raise GossipError("bad-parameters", "height or tokens out of range")
        if not 0 <= self.steps < 1 << 32:
            raise GossipError("bad-parameters", "steps out of range")

    @cached_property
    def members(self) -> frozenset[bytes]:
        """Whose deltas count in this epoch."""
        return frozenset(member for member, _ in self.weights)

    def weight_of(self, member: bytes) -> float:
        """Raises DeltaError("not-a-member")."""
        for candidate, weight in self.weights:
            if candidate == member:
                return weight
        raise DeltaError("not-a-member", member.hex()[:16])

    @cached_property
    def trusted(self) -> dict[bytes, int]:
        """What each member is believed, in permille."""
        return {member: t for (member, _), t in zip(self.weights, self.trust, strict=True)}

    def increments(
        self, delta: SparseDelta | Frame, *, sender: bytes, steps: int, schema: ModelSchema
    ) -> NDArray[np.int32]:
        """What a delta of this epoch subtracts from the anchor per centroid: int32 [T, 4].

        steps: of its header. Raises DeltaError("not-a-member" or "increment-too-large").
        """
        return increments(
            delta,
            weight=self.weight_of(sender) * step_factor(self.steps, steps),
            alpha=self.alpha,
            scales=clip_scales(self, delta, steps),
            schema=schema,
        )

    def to_bytes(self) -> bytes:
        """The one encoding: big-endian, weights and clip radii as fp64 bits."""
        return b"".join(
            (
                FIXED.pack(
                    self.height,
                    self.tokens,
                    self.alpha,
                    self.kept_per_chunk,
                    len(self.weights),
                    len(self.clip),
                    self.steps,
                ),
                *(
                    MEMBER.pack(member, weight, trust)
                    for (member, weight), trust in zip(self.weights, self.trust, strict=True)
                ),
                pack(f">{len(self.clip)}d", *self.clip),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "EpochParameters":
        """Raises GossipError("bad-parameters") for anything that `to_bytes` does not write."""
        if len(data) > PARAMETERS_BYTES_MAX:
            raise GossipError("bad-parameters", f"{len(data)} bytes")
        try:
            height, tokens, alpha, kept, members, tensors, steps = FIXED.unpack_from(data)
            clip_start = FIXED.size + members * MEMBER.size
            listed = list(MEMBER.iter_unpack(data[FIXED.size : clip_start]))
            clip = unpack_from(f">{tensors}d", data, clip_start)
        except error as problem:
            raise GossipError("bad-parameters", str(problem)) from None
        weights = tuple((member, weight) for member, weight, _ in listed)
        trust = tuple(each for _, _, each in listed)
        parameters = cls(height, alpha, weights, clip, kept, tokens, trust, steps)
        # Catches trailing bytes, a short member list, and -0.0 where 0.0 is meant.
        if parameters.to_bytes() != data:
            raise GossipError("bad-parameters", "not the one encoding")
        return parameters


def message_norms(message: SparseDelta | Frame) -> NDArray[np.float64]:
    """L2 norm of each tensor of a message from declared centroids and counts: float64 [T].

    The same bits as compression.frame.tensor_norms, without a Python loop over the tensors.
    """
    centroids = message.centroids.astype(np.float64)
    squares = message.counts.astype(np.float64) * (centroids * centroids)
    total = ((squares[:, 0] + squares[:, 1]) + squares[:, 2]) + squares[:, 3]
    norms: NDArray[np.float64] = np.sqrt(total)
    return norms


def clip_scales(
    parameters: EpochParameters, message: SparseDelta | Frame, steps: int
) -> NDArray[np.float64]:
    """s_t = min(1, clip_t / norm_t): what receivers clip each tensor by, float64 [T]; the norm is
    that of a delta with the usual steps, `steps` those of its header.

    The sender needs the same factors to know what it really said (compression/residual.py). Like
    its weight, the factor of its steps is no part of that: what a delta counts for less, because it
    holds more steps, is not to be said again.
    """
    norms = message_norms(message) * step_factor(parameters.steps, steps)
    clip = np.array(parameters.clip)
    assert clip.shape == norms.shape, "the epoch is of another model"
    scales = np.ones_like(norms)
    above = norms > clip
    scales[above] = clip[above] / norms[above]
    return scales


def contribution_of(
    header: DeltaHeader,
    message: SparseDelta | Frame,
    *,
    parameters: EpochParameters,
    schema: ModelSchema,
    load: Callable[[], SparseDelta],
) -> Contribution:
    """A delta of a cut for `next_parameters`; `parameters` are those of `header.height`.

    A parsed frame is enough: `load` decodes it when, and only if, it is needed.
    """
    assert parameters.height == header.height, "a delta is worth what its own epoch says"
    factor = step_factor(parameters.steps, header.steps)
    return Contribution(
        member=header.sender,
        sequence=header.sequence,
        steps=header.steps,
        tokens=header.tokens,
        usual_tokens=max(1, int(header.tokens * factor)),
        norms=message_norms(message) * factor,
        increments=parameters.increments(
            message, sender=header.sender, steps=header.steps, schema=schema
        ),
        load=load,
    )


def genesis_parameters(
    members: Sequence[tuple[bytes, int, int]],
    schema: ModelSchema,
    *,
    kept_per_chunk: int,
    alpha: float,
    largest_value: float = math.inf,
    steps: int = 0,
) -> EpochParameters:
    """The epoch of checkpoint 0, before there is a message to take a median of.

    `members`: (id, shard tokens, share permille). largest_value: the root mean square that the
    values of a message may have; what a liar adds before the first checkpoint is never made good.
    steps: of a delta as it should be, where steps are normalised.
    """
    kept = schema.layout.kept_per_tensor(kept_per_chunk).tolist()
    return EpochParameters(
        height=0,
        alpha=alpha,
        weights=objective_weights([Member(*member) for member in members], {}),
        clip=tuple(largest_value * math.sqrt(count) for count in kept),
        kept_per_chunk=kept_per_chunk,
        tokens=0,
        trust=(FULL_PERMILLE,) * len(members),
        steps=steps,
    )


def next_parameters(
    previous: EpochParameters,
    contributions: Sequence[Contribution],
    members: Sequence[tuple[bytes, int, int]],
    schema: ModelSchema,
    *,
    clip_factor: float = 2.0,
    kept_per_chunk: int | None = None,
    aligned: bool = True,
    normalise_steps: bool = False,
    weights: tuple[tuple[bytes, float], ...] | None = None,
) -> EpochParameters:
    """What is in force after a cut with these contributions: the same bits on every machine.

    `previous` is the epoch of the last committed checkpoint; `members` are those of the next
    epoch, (id, shard tokens, share permille) each, in any order; so are the contributions.
    kept_per_chunk: the next epoch's density, of 4096; None leaves it as it is. aligned: False
    believes everybody fully, whatever their deltas did. normalise_steps: whether deltas of the next
    epoch count as if they had its usual steps. weights: the next epoch's, where they are
    certified and what the member list says of shards and shares is not known.
    """
    keys = {(contribution.member, contribution.sequence) for contribution in contributions}
    assert len(keys) == len(contributions), "a delta is in a cut once"
    tokens: Counter[bytes] = Counter()
    for part in contributions:
        tokens[part.member] += part.usual_tokens
    steps = usual_steps((part.member, part.steps) for part in contributions)
    trust = next_trust(previous.trusted, contributions, schema) if aligned else {}
    trusted = [Member(*member, trust.get(member[0], FULL_PERMILLE)) for member in members]
    weights = weights or objective_weights(trusted, tokens)
    return EpochParameters(
        height=previous.height + 1,
        alpha=_next_alpha(previous.alpha, contributions, schema, weights, tokens),
        weights=weights,
        clip=_next_clip(previous.clip, contributions, clip_factor),
        kept_per_chunk=kept_per_chunk or previous.kept_per_chunk,
        tokens=min(COUNTER_MAX, previous.tokens + sum(part.tokens for part in contributions)),
        trust=tuple(each.trust_permille for each in sorted(trusted)),
        steps=(steps or previous.steps) if normalise_steps else 0,
    )


def _next_alpha(
    previous: float,
    contributions: Sequence[Contribution],
    schema: ModelSchema,
    weights: Sequence[tuple[bytes, float]],
    tokens: Mapping[bytes, int],
) -> float:
    members = len(weights)
    if members == 1:
        return 1.0
    kappa = measure_gain(contributions, schema)
    if kappa is None:
        return previous
    # Beyond the root only where a sum of magnitudes wrapped around.
    gain = GAIN * min(max(1.0, float(min(kappa, Fraction(members)))), math.sqrt(members))
    return gain * pace_gain(weights, tokens)


def _next_clip(
    previous: tuple[float, ...], contributions: Sequence[Contribution], factor: float
) -> tuple[float, ...]:
    if not contributions:
        return previous
    norms = np.stack([contribution.norms for contribution in contributions])
    return median_clip(previous, norms, factor)


def median_clip(
    previous: tuple[float, ...], norms: NDArray[np.float64], factor: float
) -> tuple[float, ...]:
    """factor * median norm per tensor, of norms float64 [messages, T] with at least one message.

    Messages that leave a tensor alone do not count; where all do, the radius stays `previous`: a
    radius of 0 would shut the tensor out.
    """
    present = np.count_nonzero(norms, axis=0)
    ordered = np.sort(np.where(norms > 0.0, norms, math.inf), axis=0)
    lower = np.take_along_axis(ordered, np.maximum(present - 1, 0)[None] // 2, axis=0)[0]
    upper = np.take_along_axis(ordered, present[None] // 2, axis=0)[0]
    radius = factor * ((lower + upper) * 0.5)
    kept = (present == 0) | ~(radius > 0.0)
    return tuple(np.where(kept, np.array(previous), radius).tolist())
