"""How little deltas overlap: the ratio that sets the gain alpha.

Sparse deltas of different nodes touch different positions, so the weighted sum of what they say is
shorter than they are together, even where all mean the same, by the factor

    kappa = (sum_j w_j |q_j|) / | sum_j w_j abs(q_j) |          abs: of each value

which is between 1 (all touch the same positions alike) and sqrt(n) (no two touch one), by the
inequalities of the triangle and of Cauchy and Schwarz. The next epoch multiplies by it. Magnitudes
alone count: where deltas contradict each other their sum is short too, and that is no reason to go
further; nor can a liar raise the gain by contradicting.

Every member must find the same bits, and floating-point sums depend on their order, so norms are
taken of the integer increments that were added to the anchor: exact squares, exact sums, an integer
square root, an exact median, one rounding at the very end.

Source: the gain rule of reference/algorithms.md 1.4, there with signs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta
from shoal.gossip.schema import FRACTION_BITS_MAX, ModelSchema

# Fraction bits of a square root, so that a tiny model's kappa is no coarser than a large one's.
ROOT_BITS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """One delta of a cut, as far as the next epoch's parameters depend on it.

    steps, tokens: as its header says; usual_tokens: at the mesh's usual steps (weights.py); norms:
    float64 [T], of the message before any clip, with its steps normalised; increments: int32
    [T, 4], as added to the anchor; load: gives the decoded delta, each time that it is called.
    Decoded deltas are not held, so a cut of many large ones needs little memory.
    """

    member: bytes
    sequence: int
    steps: int
    tokens: int
    usual_tokens: int
    norms: NDArray[np.float64]
    increments: NDArray[np.int32]
    load: Callable[[], SparseDelta]


def measure_gain(contributions: Iterable[Contribution], schema: ModelSchema) -> Fraction | None:
    """kappa: the median over groups, where group g is every member's g-th delta of the cut.

    Groups of one member say nothing, nor do those whose sum is zero; None when no group is left.
    Exact, hence independent of order, device and number of threads.
    """
    scratch = np.zeros(schema.layout.total, dtype=np.int32)
    ratios = [_ratio(group, scratch, schema) for group in _groups(contributions)]
    known = [ratio for ratio in ratios if ratio is not None]
    return median(known) if known else None


def _groups(contributions: Iterable[Contribution]) -> list[list[Contribution]]:
    by_member: defaultdict[bytes, list[Contribution]] = defaultdict(list)
    for contribution in contributions:
        by_member[contribution.member].append(contribution)
    groups: defaultdict[int, list[Contribution]] = defaultdict(list)
    for member in sorted(by_member):
        ordered = sorted(by_member[member], key=lambda contribution: contribution.sequence)
        for rank, contribution in enumerate(ordered):
            groups[rank].append(contribution)
    return [groups[rank] for rank in sorted(groups) if len(groups[rank]) >= 2]


def _ratio(
    group: Sequence[Contribution], scratch: NDArray[np.int32], schema: ModelSchema
) -> Fraction | None:
    """(sum of norms) / (norm of the sum of magnitudes). `scratch`: int32 [P], overwritten with it.

    The square of the sum is kept up to date while deltas are added, from the values before and
    after at the touched positions only. A sum beyond int32 wraps around like the anchor it would
    have ruined: still the same number everywhere.
    """
    scratch.fill(0)
    shifts = [2 * (FRACTION_BITS_MAX - tensor.fraction_bits) for tensor in schema.tensors]
    separate = 0
    square = 0
    for contribution in group:
        delta = contribution.load()
        separate += isqrt(_square_of_one(contribution, delta, shifts) << 2 * ROOT_BITS)
        starts = np.cumsum(delta.counts.sum(axis=1)) - delta.counts.sum(axis=1)
        before = scratch[delta.indices]
        after = before + np.abs(contribution.increments.reshape(-1))[delta.table_ids()]
        scratch[delta.indices] = after
        square += _weighted(squares_per_tensor(after, starts), shifts)
        square -= _weighted(squares_per_tensor(before, starts), shifts)
    norm = isqrt(square << 2 * ROOT_BITS)
    return Fraction(separate, norm) if norm else None


def _square_of_one(contribution: Contribution, delta: SparseDelta, shifts: Sequence[int]) -> int:
    per_tensor = [
        sum(count * step * step for count, step in zip(counts, steps, strict=True))
        for counts, steps in zip(
            delta.counts.tolist(), contribution.increments.tolist(), strict=True
        )
    ]
    return _weighted(per_tensor, shifts)


def _weighted(squares: Sequence[int], shifts: Sequence[int]) -> int:
    """Add up squares of tensors whose binary points differ, in the finest scale there is."""
    return sum(square << shift for square, shift in zip(squares, shifts, strict=True))


def squares_per_tensor(values: NDArray[np.int32], starts: NDArray[np.int64]) -> list[int]:
    """Exact sums of squares of each tensor's run of `values`; `starts` ascends strictly."""
    wide = values.astype(np.int64)
    largest = max(int(wide.max()), -int(wide.min()))
    if largest * largest * values.size < 1 << 63:
        narrow_sums: list[int] = np.add.reduceat(wide * wide, starts).tolist()
        return narrow_sums
    # Halves of 16 bits: each product stays below 2^32, so 2^31 of them fit a 64-bit sum.
    high, low = wide >> 16, wide & 0xFFFF
    sums = [np.add.reduceat(part, starts).tolist() for part in (high * high, high * low, low * low)]
    return [(hh << 32) + (hl << 17) + ll for hh, hl, ll in zip(*sums, strict=True)]
