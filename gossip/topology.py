"""Who links to whom, computed alike by everybody from the agreed member list and a seed.

Up to 16 members link to all others. Above that the graph is the union of degree/2 Hamiltonian
cycles, each a pseudo-random round trip of all members: connected because one cycle is, regular
because every cycle gives everybody two links and no two cycles share one, and with overwhelming
probability an expander, so news crosses it in about log(n) steps.

Drawing from the agreed list, instead of from what peers recommend, leaves nothing for an attacker
to poison (reference/consensus.md 3.1).
"""

import hashlib
from collections.abc import Collection
from itertools import pairwise

FULL_MESH_MAX = 16
DEGREE = 8
DOMAIN = b"SHOAL-TOPOLOGY\x01"


def neighbours(
    members: Collection[bytes], me: bytes, epoch_seed: bytes, degree: int = DEGREE
) -> tuple[bytes, ...]:
    """The ids that `me` links to, in ascending order; symmetric between members.

    `degree` is even. Exactly that many above 16 members, unless so few members make disjoint
    cycles impossible to find: then one or two less.
    """
    assert degree >= 2 and degree % 2 == 0, "each cycle gives two links"
    everybody = sorted(set(members))
    if me not in everybody:
        return ()
    if len(everybody) <= max(FULL_MESH_MAX, degree + 1):
        return tuple(member for member in everybody if member != me)
    linked = {link for link in _links(everybody, epoch_seed, degree // 2) if me in link}
    return tuple(sorted(member for link in linked for member in link if member != me))


def _links(members: list[bytes], seed: bytes, cycles: int) -> set[frozenset[bytes]]:
    links: set[frozenset[bytes]] = set()
    for number in range(cycles):
        order = _disentangled(_shuffled(members, seed, number), links)
        links.update(frozenset(edge) for edge in pairwise([*order, order[0]]))
    return links


def _shuffled(members: list[bytes], seed: bytes, number: int) -> list[bytes]:
    """A permutation that no version of any random generator can change: sort by hash."""
    prefix = DOMAIN + len(seed).to_bytes(4, "big") + seed + number.to_bytes(4, "big")
    return sorted(members, key=lambda member: hashlib.sha256(prefix + member).digest())


def _disentangled(order: list[bytes], taken: set[frozenset[bytes]]) -> list[bytes]:
    """Turn a cycle so that it shares no edge with those taken, by 2-opt moves: cutting it at two
    edges and reversing what lies between replaces just these two by two others."""
    # A reversal moves edges past the walk, so it goes round twice.
    for _ in range(2 * len(order)):
        order = order[1:] + order[:1]
        if frozenset((order[-1], order[0])) not in taken:
            continue
        for end in range(2, len(order) - 1):
            closing = frozenset((order[-1], order[end - 1]))
            inner = frozenset((order[0], order[end]))
            if closing not in taken and inner not in taken:
                order = order[:end][::-1] + order[end:]
                break
    return order
