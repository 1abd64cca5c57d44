"""Who links to whom, computed alike by everybody from the agreed member list and a seed.

Up to 16 members link to all others. Above that the graph is the union of degree/2 Hamiltonian
cycles, each a pseudo-random round trip of all members: connected because one cycle is, regular
because every cycle gives everybody two links and no two cycles share one, and with overwhelming
probability an expander, so news crosses it in about log(n) steps.

Drawing from the agreed list, instead of from what peers recommend, leaves nothing for an attacker
to poison (reference/consensus.md 3.1).

Modes that mix models with their neighbours only (strategies/) choose among named graphs; mixing.py
has the weights of their edges.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import isqrt

FULL_MESH_MAX = 16
DEGREE = 8
DOMAIN = b"SHOAL-TOPOLOGY\x01"
GRAPHS = ("ring", "torus", "exponential", "random-regular", "complete")
# Each member's neighbours, ascending; symmetric, nobody is their own.
Graph = Mapping[bytes, tuple[bytes, ...]]


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


def graph(
    kind: str, members: Collection[bytes], seed: bytes = b"", degree: int = DEGREE
) -> dict[bytes, tuple[bytes, ...]]:
    """The graph of that name over the members in ascending order; connected, links mutual.

    ring: i +- 1. torus: the squarest grid with exactly n places, wrapped around; a ring where n is
    prime. exponential: i +- 2^k (Ying et al., 2021, both directions), so log2(n) steps cross it.
    random-regular: `degree` links each from disjoint cycles drawn by `seed`, an expander with
    overwhelming probability. complete: all. Graphs without room for their links are complete.
    """
    assert kind in GRAPHS, "a graph has one of the names of GRAPHS"
    everybody = sorted(set(members))
    count = len(everybody)
    if kind == "random-regular" and count > degree + 1:
        links = _links(everybody, seed, degree // 2)
    else:
        pairs = ((i, (i + step) % count) for step in _steps(kind, count) for i in range(count))
        links = {frozenset((everybody[i], everybody[j])) for i, j in pairs if i != j}
        if kind == "torus":
            links = _torus(everybody)
    linked: dict[bytes, set[bytes]] = {member: set() for member in everybody}
    for one, other in links:
        linked[one].add(other)
        linked[other].add(one)
    return {member: tuple(sorted(others)) for member, others in linked.items()}


def matching(members: Collection[bytes], seed: bytes, round: int) -> dict[bytes, bytes]:
    """Random disjoint pairs for one round, as a map both ways; of an odd number one is alone."""
    order = _shuffled(sorted(set(members)), seed, round)
    pairs = list(zip(order[::2], order[1::2], strict=False))
    return {a: b for pair in pairs for a, b in (pair, pair[::-1])}


def _steps(kind: str, count: int) -> Sequence[int]:
    if kind == "exponential":
        return [1 << power for power in range(max(1, (count - 1).bit_length()))]
    return [1] if kind in ("ring", "torus") else range(1, count)


def _torus(members: list[bytes]) -> set[frozenset[bytes]]:
    count = len(members)
    rows = max(rows for rows in range(1, isqrt(count) + 1) if count % rows == 0)
    columns = count // rows
    grid = [members[row * columns : (row + 1) * columns] for row in range(rows)]
    right = ((row[c], row[(c + 1) % columns]) for row in grid for c in range(columns))
    down = ((grid[r][c], grid[(r + 1) % rows][c]) for r in range(rows) for c in range(columns))
    return {frozenset(pair) for pair in (*right, *down) if pair[0] != pair[1]}


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
