"""How far a node lets its neighbours pull it, when some of them lie.

A node mixes by adding a pull, F({(W_ij, z_j)}) with z_j = x_j - x_i; without attackers the pull is
sum_j W_ij z_j. The robust ones bound what any neighbour of weight b can do:

    CS+               sum_j W_ij z_j min(1, tau / |z_j|),  tau = |z| at cumulative weight w - 2b
    ClippedGossip     the same with  tau^2 = (1/b) sum_{j among the closest 1-b} W_ij |z_j|^2

where distances ascend and w is the weight of all neighbours. Both are one norm over the whole
model: with a norm per tensor an attacker hides in a small one. Rules per coordinate (median,
trimmed mean) are useless for sparse messages and not here.

Source: CS+ from Gaucher, Dieuleveut & Hendrikx (2024), "Unified breakdown analysis for Byzantine
robust gossip"; ClippedGossip from He, Karimireddy & Jaggi (2022), its practical radius.
reference/algorithms.md 4.
"""

from collections.abc import Callable

import torch

# (differences float32 [k, P], weights float64 [k]) -> float32 [P]
Pull = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PULLS = ("none", "cs+", "clipped-gossip")


def plain_pull(differences: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_j W_ij z_j: what D-PSGD does."""
    return weights.to(differences.dtype) @ differences


def cs_plus(differences: torch.Tensor, weights: torch.Tensor, *, budget: float) -> torch.Tensor:
    """Clip every neighbour to the distance of those that honest ones must be among.

    budget: the weight b of the neighbours that may lie; with 2b at or above all the weight there
    is nothing to trust and the pull is zero.
    """
    distances = differences.norm(dim=1)
    ascending, order = torch.sort(distances)
    within = torch.cumsum(weights[order], 0) <= weights.sum() - 2.0 * budget + 1e-9
    inside = int(within.sum())
    radius = ascending[inside - 1] if inside else torch.zeros(())
    return _clipped(differences, distances, weights, radius)


def clipped_gossip(
    differences: torch.Tensor, weights: torch.Tensor, *, budget: float
) -> torch.Tensor:
    """Clip to the spread of the closest neighbours, those with all the weight but `budget` b > 0.

    The node itself is the closest, at distance zero, with what its neighbours leave of one.
    """
    assert budget > 0.0, "without liars there is nothing to clip"
    distances = differences.norm(dim=1)
    ascending, order = torch.sort(distances)
    own = 1.0 - weights.sum()
    within = own + torch.cumsum(weights[order], 0) <= 1.0 - budget + 1e-9
    spread = (weights[order] * ascending.double() ** 2)[within].sum()
    return _clipped(differences, distances, weights, torch.sqrt(spread / budget))


def robust_pull(rule: str, *, liars: int) -> Pull:
    """The pull of that name, where at most `liars` neighbours lie; each rule's b follows from the
    largest weights that so many neighbours can have."""
    assert rule in PULLS, "a pull has one of the names of PULLS"
    if rule == "none" or liars == 0:
        return plain_pull
    chosen = cs_plus if rule == "cs+" else clipped_gossip

    def pull(differences: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        heaviest = torch.topk(weights, min(liars, len(weights))).values
        return chosen(differences, weights, budget=float(heaviest.sum()))

    return pull


def _clipped(
    differences: torch.Tensor,
    distances: torch.Tensor,
    weights: torch.Tensor,
    radius: torch.Tensor,
) -> torch.Tensor:
    # Written so that a neighbour at NaN or infinity counts for nothing at all.
    usable = torch.isfinite(distances)
    factors = torch.clamp(radius / distances.clamp_min(1e-30), max=1.0)
    factors = torch.where(usable, factors, 0.0)
    safe = torch.where(usable[:, None], differences, 0.0)
    return (weights * factors).to(differences.dtype) @ safe
