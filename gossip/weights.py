"""How much each member's deltas count: the objective of the mesh, as exact integers.

The mesh minimises sum_i |D_i| / (S_i C_i) L_i: |D_i| is the shard's size in tokens, S_i the share
of its resources that a node gives to training, C_i its measured speed relative to the mesh. A
fast node makes more steps on its shard in the same time; dividing by C_i keeps one example worth
one example. |D_i| is self-declared, so no weight exceeds 3/n: claiming an enormous shard buys
little. What a member's deltas did in the last cut comes on top (alignment.py): all of its weight,
or down to a tenth of it.

Everything up to the last division is integer arithmetic, and Python's integer division rounds
correctly, so all members get the same fp64 bits.

Source: reference/algorithms.md 1.6.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Weights are ratios, so their scale is free: this many bits keep the rounding error below fp64's.
RATIO_BITS = 96
CAP_MEMBERS = 3


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

    `tokens` holds what members trained on in the cut; those it lacks count as average (C_i = 1).
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
