"""Attacks do what their papers say: each is checked against the property it is made for."""

import pytest
import torch

from shoal.gossip.attacks import (
    ATTACKS,
    Sight,
    alie_z,
    dissensus,
    inner_product_manipulation,
    little_is_enough,
    scaled_noise,
    sign_flip,
)
from shoal.gossip.robust import plain_pull


def sight(liars: int = 3) -> Sight:
    chance = torch.Generator().manual_seed(0)
    honest = torch.randn(13, 400, generator=chance) + 0.5
    return Sight(honest[0], honest, liars, chance)


def test_flipped_signs_point_the_other_way() -> None:
    seen = sight()
    assert torch.equal(sign_flip(seen, factor=1.0), -seen.own)
    assert torch.cosine_similarity(sign_flip(seen), seen.own, dim=0) == pytest.approx(-1.0)


def test_noise_has_the_size_asked_for_and_no_direction() -> None:
    seen = sight()
    noise = scaled_noise(seen, factor=30.0)
    assert float(noise.norm() / seen.own.norm()) == pytest.approx(30.0, rel=1e-4)
    assert abs(float(torch.cosine_similarity(noise, seen.own, dim=0))) < 0.2
    assert not torch.equal(noise, scaled_noise(seen))


def test_enough_of_ipm_turns_the_mean_around() -> None:
    seen = sight()
    mean = seen.honest.mean(dim=0)
    for epsilon, agrees in ((0.1, True), (5.0, False)):
        lie = inner_product_manipulation(seen, epsilon=epsilon)
        everybody = torch.cat([seen.honest, lie.expand(3, -1)]).mean(dim=0)
        assert bool(torch.dot(everybody, mean) > 0) == agrees


def test_a_little_stays_within_the_spread_of_the_honest() -> None:
    seen = sight()
    lie = little_is_enough(seen, z=1.5)
    away = (lie - seen.honest.mean(dim=0)).abs() / seen.honest.std(dim=0, correction=0)
    assert away.tolist() == pytest.approx([1.5] * 400, rel=1e-3)
    # No farther from the mean than the honest themselves are, all in all.
    mean = seen.honest.mean(dim=0)
    distances = (seen.honest - mean).norm(dim=1)
    assert float((little_is_enough(seen, z=1.0) - mean).norm()) <= float(distances.max())


# Quantiles of the normal distribution at 24/38, 7/13 and 1/2.
@pytest.mark.parametrize(("members", "liars", "z"), [(50, 12, 0.336), (16, 3, 0.0966), (3, 1, 0)])
def test_z_is_the_quantile_of_the_paper(members: int, liars: int, z: float) -> None:
    assert alie_z(members, liars) == pytest.approx(z, abs=1e-3)


def test_dissensus_undoes_what_the_honest_neighbours_pull_and_more() -> None:
    models = sight().honest
    victim, honest = models[0], models[1:4]
    weights = torch.full((3,), 0.2, dtype=torch.float64)
    for epsilon, left in ((1.0, 0.0), (1.5, -0.5)):
        lie = dissensus(victim, honest, weights, 0.2, epsilon=epsilon)
        everybody = torch.cat([honest, lie[None]]) - victim
        pulled = plain_pull(everybody, torch.full((4,), 0.2, dtype=torch.float64))
        wanted = plain_pull(honest - victim, weights) * left
        assert torch.allclose(pulled, wanted, atol=1e-5)


def test_every_named_attack_gives_one_finite_vector() -> None:
    for attack in ATTACKS.values():
        lie = attack(sight())
        assert lie.shape == (400,)
        assert torch.isfinite(lie).all()
