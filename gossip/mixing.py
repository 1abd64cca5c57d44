"""How much a neighbour's model counts: the rows of the mixing matrix.

    W_ij = min( 1 / (d_i + 1),  p_j / (p_i (d_j + 1)) )        for neighbours i, j of degree d
    W_ii = 1 - sum_j W_ij

Each row is computed from what a node and its neighbours know, rows add up to one, and
p_i W_ij = p_j W_ji, so that x <- W x keeps sum_i p_i x_i, the mesh's objective, where it is. With
equal p it is Metropolis-Hastings, 1 / (1 + max(d_i, d_j)), symmetric and doubly stochastic.

Source: Metropolis et al. (1953) as in decentralised averaging (Xiao & Boyd, 2004); the reversible
form for unequal p is reference/algorithms.md 1.6.
"""

from collections.abc import Mapping

import numpy as np

from shoal.gossip.topology import Graph

# A neighbour's weight W_ij; what is missing to one is the node's own.
Row = Mapping[bytes, float]


def mixing_rows(graph: Graph, shares: Mapping[bytes, float] | None = None) -> dict[bytes, Row]:
    """The row of every member. `shares`: p_i > 0, in any scale; None: all the same.

    The sum of a row is below one by at least 1 / (d_i + 1), which is the least that a node keeps.
    """
    return {me: mixing_row(me, graph, shares) for me in graph}


def mixing_row(me: bytes, graph: Graph, shares: Mapping[bytes, float] | None = None) -> Row:
    """W_ij of one member `me` for each of its neighbours j."""
    own = 1.0 / (len(graph[me]) + 1)
    row = {}
    for other in graph[me]:
        ratio = 1.0 if shares is None else shares[other] / shares[me]
        row[other] = min(own, ratio / (len(graph[other]) + 1))
    return row


def pair_row(me: bytes, other: bytes, shares: Mapping[bytes, float] | None = None) -> Row:
    """Two that meet both go to (p_i x_i + p_j x_j) / (p_i + p_j)."""
    return {other: 0.5 if shares is None else shares[other] / (shares[me] + shares[other])}


def spectral_gap(rows: Mapping[bytes, Row], shares: Mapping[bytes, float] | None = None) -> float:
    """1 - |lambda_2| of W: how much of the disagreement one round of mixing removes at least.

    W is similar to the symmetric D^1/2 W D^-1/2 with D = diag(p), whose eigenvalues are taken.
    """
    order = {member: place for place, member in enumerate(sorted(rows))}
    matrix = np.zeros((len(order), len(order)))
    for me, row in rows.items():
        for other, weight in row.items():
            matrix[order[me], order[other]] = weight
        matrix[order[me], order[me]] = 1.0 - sum(row.values())
    roots = np.sqrt([1.0 if shares is None else shares[member] for member in sorted(rows)])
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix * roots[:, None] / roots[None, :])))
    return float(1.0 - values[-2]) if len(values) > 1 else 1.0
