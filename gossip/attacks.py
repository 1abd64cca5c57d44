"""What a member may do to a round besides training: attacks for tests and benchmarks.

Each is a pure function from what an omniscient attacker sees to the vector that it claims, so that
all of them pass through the honest code, the codec included: an attacker cannot break the format,
it can only lie within it. For strategies that say how far they came the vectors are deltas (start
minus end); for those that mix models they are models.

Source: reference/algorithms.md 4, and for each its paper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """What the attacker knows: everything.

    own: float32 [P], what it would say honestly; honest: float32 [m, P], what the honest members
    say; liars: how many attackers there are; generator: the source of its noise.
    """

    own: torch.Tensor
    honest: torch.Tensor
    liars: int
    generator: torch.Generator


Attack = Callable[[Sight], torch.Tensor]


def sign_flip(sight: Sight, *, factor: float = 5.0) -> torch.Tensor:
    """-factor * own: uphill, faster than the others go down (Li et al., 2019, RSA)."""
    return sight.own.mul(-factor)


def scaled_noise(sight: Sight, *, factor: float = 30.0) -> torch.Tensor:
    """Gaussian noise with `factor` times the norm of what it would say honestly."""
    noise = torch.randn(sight.own.shape, generator=sight.generator)
    size = factor * sight.own.norm() / noise.norm().clamp_min(1e-30)
    return noise.mul_(size)


def inner_product_manipulation(sight: Sight, *, epsilon: float = 3.0) -> torch.Tensor:
    """-epsilon * mean of the honest: small ones hide in the crowd, large ones turn the sum around
    (IPM: Xie, Koyejo & Gupta, 2019)."""
    return sight.honest.mean(dim=0) * -epsilon


def little_is_enough(sight: Sight, *, z: float | None = None) -> torch.Tensor:
    """mean - z * standard deviation per coordinate: within the spread of the honest, all to one
    side (ALIE: Baruch, Baruch & Goldberg, 2019). z: None chooses theirs, `alie_z`."""
    members = len(sight.honest) + sight.liars
    chosen = alie_z(members, sight.liars) if z is None else z
    spread = sight.honest.std(dim=0, correction=0)
    return sight.honest.mean(dim=0) - chosen * spread


def alie_z(members: int, liars: int) -> float:
    """The largest z at which enough honest members still lie farther out than the attackers.

    z = Phi^-1((n - f - s) / (n - f)) with s = floor(n/2 + 1) - f, the honest ones that a majority
    with the attackers needs. Never below 0.
    """
    supporters = max(0, members // 2 + 1 - liars)
    honest = members - liars
    share = (honest - supporters) / honest
    return max(0.0, NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6)))


def dissensus(
    victim: torch.Tensor,
    honest: torch.Tensor,
    honest_weights: torch.Tensor,
    liar_weight: float,
    *,
    epsilon: float = 1.5,
) -> torch.Tensor:
    """x_i - epsilon * sum_honest W_ij (x_j - x_i) / sum_liars W_ij: what cancels the pull of the
    victim's honest neighbours, and more, so that the mesh falls apart (He et al., 2022).

    victim: float32 [P], the model x_i; honest: float32 [k, P], its honest neighbours' models, with
    honest_weights [k]; liar_weight: the weight of all attackers next to it.
    """
    pull = honest_weights.to(honest.dtype) @ (honest - victim)
    return victim - (epsilon / liar_weight) * pull


ATTACKS: Mapping[str, Attack] = {
    "sign-flip": sign_flip,
    "noise": scaled_noise,
    "ipm": inner_product_manipulation,
    "alie": little_is_enough,
}
