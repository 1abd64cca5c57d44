"""Whose deltas go where the others' go: what a member's word counts for in the next epoch.

With u_j the direction of what member j's deltas of a cut added to the anchor together, all of one
length so that nobody is heard above the others, and S the sum of all,

    cos_j   = <u_j, S - u_j> / (|u_j| |S - u_j|)
    trust_j = clip(cos_j / (median_i cos_i / 2), 1/10, 1)

Members whose text is alike or not too unlike keep all of their weight, whatever their cosines are:
it begins to fall where a cosine is below half the median. Who says the opposite, or noise, is left
a tenth, which also keeps an honest minority with text like nobody else's from being muted. Trust is
lost at once and comes back by a quarter an epoch; who said nothing keeps what it had. Nobody is
judged while the members' own agreement could be chance: signs thrown at random on m places have a
cosine of about m^-1/2, and the median must be five times that.

All of it is exact, as in gain.py: integer increments, integer roots, directions of whole numbers
and their products. No state but the last epoch's trust is needed, so a joiner knows all of it.

Source: the cosine trust of reference/algorithms.md 4, made linear: frozen for the epoch, so that
deltas still add in any order.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isqrt
from statistics import median, median_low
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shoal.gossip.gain import ROOT_BITS, Contribution, squares_per_tensor
from shoal.gossip.schema import FRACTION_BITS_MAX, ModelSchema

FULL_PERMILLE = 1000
FLOOR_PERMILLE = 100
REGAINED_PERMILLE = 250
# Whoever is above this share of the median cosine is believed.
BELIEVED_SHARE = Fraction(1, 2)
# How many standard deviations of chance the members' agreement must be.
SIGNIFICANT = 5
# Directions are so many bits long: sums over all members fit int32, their products int64.
DIRECTION_BITS = 20
LENGTH_MAX = 1 << 62
HELD_BYTES_MAX = 128 << 20
# With fewer there is no majority that one could stand out from.
MEMBERS_MIN = 4


def next_trust(
    previous: Mapping[bytes, int], contributions: Sequence[Contribution], schema: ModelSchema
) -> dict[bytes, int]:
    """Permille of each member that had any before or said something; the rest have all of it."""
    trust = dict(previous)
    courses = measure_courses(contributions, schema)
    if len(courses) < MEMBERS_MIN:
        return trust
    agreement = median(course.cosine for course in courses.values())
    places = median_low(course.places for course in courses.values())
    if agreement <= 0 or agreement * agreement * places < SIGNIFICANT * SIGNIFICANT:
        return trust
    believed = agreement * BELIEVED_SHARE
    for member, (cosine, _) in courses.items():
        before = trust.get(member, FULL_PERMILLE)
        now = int(FULL_PERMILLE * cosine / believed) if cosine > 0 else 0
        trust[member] = max(FLOOR_PERMILLE, min(now, before + REGAINED_PERMILLE, FULL_PERMILLE))
    return trust


class Course(NamedTuple):
    """cos_j, 0 for a sum of 0; and how many places member j's deltas moved."""

    cosine: Fraction
    places: int


def measure_courses(
    contributions: Sequence[Contribution], schema: ModelSchema
) -> dict[bytes, Course]:
    """Where every member with a delta in the cut went, in ascending order of ids."""
    own: defaultdict[bytes, list[Contribution]] = defaultdict(list)
    for part in sorted(contributions, key=lambda part: (part.member, part.sequence)):
        own[part.member].append(part)
    total, scratch = (np.zeros(schema.layout.total, dtype=np.int32) for _ in range(2))
    # The directions of all may not fit into memory where those of one do; the rest are worked out
    # once more.
    held, room = {}, HELD_BYTES_MAX
    for member, parts in own.items():
        places, direction = _direction(parts, scratch, schema)
        total[places] += direction
        room -= places.nbytes + direction.nbytes
        if room >= 0:
            held[member] = places, direction
    whole = _dot(total, total)
    return {
        member: _course(*(held.get(member) or _direction(parts, scratch, schema)), total, whole)
        for member, parts in own.items()
    }


def _direction(
    parts: Sequence[Contribution], scratch: NDArray[np.int32], schema: ModelSchema
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The sum of one member's deltas, made 2^20 long: ascending places and values.

    scratch: int32 [P] of zeros, which it is again afterwards. A sum beyond int32 wraps around like
    the anchor that it would have ruined.
    """
    for part in parts:
        delta = part.load()
        scratch[delta.indices] += part.increments.reshape(-1)[delta.table_ids()]
    # Of bools: numpy counts and finds them many times faster than numbers.
    places = np.flatnonzero(scratch != 0)
    sums = scratch[places]
    scratch[places] = 0
    counts = np.diff(np.searchsorted(places, schema.layout.offsets))
    present = np.flatnonzero(counts)
    if not present.size:
        return places, sums
    shifts = [FRACTION_BITS_MAX - schema.tensors[tensor].fraction_bits for tensor in present]
    counts = counts[present]
    squares = zip(squares_per_tensor(sums, np.cumsum(counts) - counts), shifts, strict=True)
    length = isqrt(sum(square << 2 * shift for square, shift in squares))
    # In each tensor's own scale. No value is longer than the whole, so a length of 0 only divides
    # zeros; and one that int64 does not hold would leave nothing of any value.
    lengths = np.array([min(max(1, length >> shift), LENGTH_MAX) for shift in shifts])
    sizes = (np.abs(sums.astype(np.int64)) << DIRECTION_BITS) // np.repeat(lengths, counts)
    return places, (np.sign(sums) * sizes).astype(np.int32)


def _course(
    places: NDArray[np.int64], direction: NDArray[np.int32], total: NDArray[np.int32], whole: int
) -> Course:
    """whole: the square of `total`."""
    square = _dot(direction, direction)
    along = _dot(direction, total[places]) - square
    others = whole - 2 * along - square
    length = isqrt(square * others << 2 * ROOT_BITS) if others > 0 else 0
    cosine = Fraction(along << ROOT_BITS, length) if length else Fraction(0)
    return Course(cosine, places.size)


def _dot(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """<a, b> of directions or sums of them, which stays below 2^61 with 1,024 members."""
    return int(a.astype(np.int64) @ b.astype(np.int64))
