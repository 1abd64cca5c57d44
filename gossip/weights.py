"""How much each member's deltas count: the objective of the mesh, as exact integers.

The mesh minimises sum_i |D_i| / (S_i C_i) L_i: |D_i| is the shard's size in tokens, S_i the share
of its resources that a node gives to training, C_i its measured speed relative to the mesh. A
fast node makes more steps on its shard in the same time; dividing by C_i keeps one example worth
one example. |D_i| is self-declared, so no weight exceeds 3/n: claiming an enormous shard buys
little. What a member's deltas did in the last cut comes on top (alignment.py): all of its weight,
or down to a tenth of it.

C_i is known when a cut is over. Where steps are normalised, each delta also counts for what it
would have been with the mesh's usual number of steps H, whatever its own number H_d is,

    d <- d * H / H_d        within 1/4 and 4;    H: the mean over members of the last cut

before it is clipped, so claiming few steps makes nobody louder than the clip. C_i is then taken of
the tokens that those steps would have had: what is divided out here is not divided out twice. H is
the harmonic mean, with which all deltas together count for as much as they did: H / H_i is 1 on
average. Nobody counts in it for less than a quarter or more than four times the median, so a third
of liars moves it to half of that or a third more, whatever they claim.

With sum_i w_i = 1 a slow member takes from the others: 1 / C_i makes its weight large, and what it
says is small, so all together go sum_i w_i c_i as far as with equal speeds, c_i being the speed
relative to the median. The gain makes up for that (pace_gain).

Everything up to the last division is integer arithmetic, and Python's integer division rounds
correctly, so all members get the same fp64 bits.

Source: reference/algorithms.md 1.6; FedNova (Wang et al., 2020, arXiv:2007.07481).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import NamedTuple

# Weights are ratios, so their scale is free: this many bits keep the rounding error below fp64's.
RATIO_BITS = 96
CAP_MEMBERS = 3
# A delta counts for so many times what it says, or for one over so many, whatever its steps are.
STEP_FACTOR_MAX = 4
# What one liar of four could do by claiming to be slow: no more than this.
PACE_GAIN_MAX = 1.25
SPEED_MAX = 4
STEPS_MOST = (1 << 32) - 1
STEP_BITS = 32
FACTOR_LEAST = (1 << STEP_BITS) // STEP_FACTOR_MAX
FACTOR_MOST = STEP_FACTOR_MAX << STEP_BITS


class Member(NamedTuple):
    """What the agreed member list says of one member; permilles are 1 to 1000."""

    member: bytes
    shard_tokens: int
    share_permille: int
    trust_permille: int = 1000


def objective_weights(
    members: Sequence[Member], tokens: Mapping[bytes, int]
) -> tuple[tuple[bytes, float], ...]:
    """(member, weight) in ascending order of ids, the weights adding up to 1.

    `tokens` holds what members trained on in the cut, at the usual steps where those are
    normalised; members that it lacks count as average (C_i = 1).
    """
    assert members, "a mesh has at least one member"
    ratios = {}
    active = [m.member for m in members if tokens.get(m.member, 0) > 0]
    total = sum(tokens[member] for member in active)
    for entry in members:
        # Zeros would be agreed state by the time they come here: the smallest share, no failure.
        numerator = max(1, entry.shard_tokens) * entry.trust_permille
        denominator = max(1, entry.share_permille)
        if own := tokens.get(entry.member, 0):
            # C_i = own / (total / active), so 1 / C_i = total / (own * active).
            numerator, denominator = numerator * total, denominator * own * len(active)
        ratios[entry.member] = max(1, (numerator << RATIO_BITS) // denominator)
    assert len(ratios) == len(members), "every member stands once in the list"
    return _capped(ratios)


def pace_gain(weights: Sequence[tuple[bytes, float]], tokens: Mapping[bytes, int]) -> float:
    """What the gain is multiplied with, 1 to 1.25: slow members shall cost the others no pace.

    weights: of the next epoch; tokens: as for these. Members without any count as of middle speed.
    The speeds are relative to the median, which one liar cannot move, and within 1/4 and 4; the
    sum is correctly rounded whatever its order.
    """
    known = [count for count in tokens.values() if count > 0]
    if not known:
        return 1.0
    middle = median_low(known)
    speeds = {
        member: min(max(count / middle, 1 / SPEED_MAX), SPEED_MAX)
        for member, count in tokens.items()
        if count > 0
    }
    pace = math.fsum(weight * speeds.get(member, 1.0) for member, weight in weights)
    return min(max(1.0, 1.0 / pace), PACE_GAIN_MAX)


def step_factor(usual_steps: int, steps: int) -> float:
    """What a delta of `steps` steps is multiplied with; 1 where `usual_steps` is 0: no such rule.

    One division of integers, which Python rounds correctly.
    """
    if usual_steps == 0:
        return 1.0
    return min(max(usual_steps / max(1, steps), 1 / STEP_FACTOR_MAX), float(STEP_FACTOR_MAX))


def usual_steps(deltas: Iterable[tuple[bytes, int]]) -> int | None:
    """H, whole, of (member, steps) of a cut's deltas in any order; None for an empty cut."""
    own: defaultdict[bytes, list[int]] = defaultdict(list)
    for member, steps in deltas:
        own[member].append(steps)
    if not own:
        return None
    means = [sum(each) // len(each) for each in own.values()]
    middle = median_low(means) << STEP_BITS
    factors = [middle // mean for mean in means]
    total = sum(min(max(each, FACTOR_LEAST), FACTOR_MOST) for each in factors)
    return min(max(1, (2 * len(means) * middle + total) // (2 * total)), STEPS_MOST)


def _capped(ratios: Mapping[bytes, int]) -> tuple[tuple[bytes, float], ...]:
    """Normalise to a sum of 1 with no weight above 3/n; what the cap takes goes to the others in
    proportion. Fewer than n/3 members can be capped, so something is always left for the rest."""
    count = len(ratios)
    capped: set[bytes] = set()
    while True:
        # The rest shares (count - 3 * len(capped)) / count in proportion to its ratios.
        left = count - CAP_MEMBERS * len(capped)
        rest = sum(ratio for member, ratio in ratios.items() if member not in capped)
        above = {
            member
            for member, ratio in ratios.items()
            if member not in capped and ratio * left > CAP_MEMBERS * rest
        }
        if not above:
            break
        capped |= above
    return tuple(
        (member, CAP_MEMBERS / count if member in capped else ratio * left / (count * rest))
        for member, ratio in sorted(ratios.items())
    )
