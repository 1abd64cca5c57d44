"""A node that listens carefully is pulled as before by honest neighbours, and not far by liars."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.robust import clipped_gossip, cs_plus, plain_pull, robust_pull


def close(count: int, seed: int = 0, size: int = 50) -> torch.Tensor:
    """Honest neighbours: all about as far away, in directions of their own."""
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def equal(count: int) -> torch.Tensor:
    return torch.full((count,), 1.0 / (count + 1), dtype=torch.float64)


@given(st.floats(1e3, 1e30), st.integers(0, 100), st.sampled_from(["cs+", "clipped-gossip"]))
@settings(deadline=None)
def test_a_liar_pulls_no_farther_than_an_honest_neighbour_could(
    size: float, seed: int, rule: str
) -> None:
    differences = close(6, seed)
    differences[5] = differences[5] / differences[5].norm() * size
    pulled = robust_pull(rule, liars=1)(differences, equal(6))
    honest = plain_pull(differences[:5], equal(6)[:5])
    farthest = float(differences[:5].norm(dim=1).max())
    # ClippedGossip's radius grows with what the honest weigh against the liar, here 5 to 1.
    bound = {"cs+": 1.0, "clipped-gossip": 5.0**0.5}[rule] * farthest / 7
    assert float((pulled - honest).norm()) <= bound * 2
    assert float(plain_pull(differences, equal(6)).norm()) > 10 * bound


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["cs+", "clipped-gossip"])
def test_what_is_no_number_does_not_pull_at_all(bad: float, rule: str) -> None:
    differences = close(6)
    differences[2, 3] = bad
    assert torch.isfinite(robust_pull(rule, liars=1)(differences, equal(6))).all()


def test_cs_plus_clips_to_the_neighbour_that_honest_ones_must_reach() -> None:
    differences = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    weights = torch.full((5,), 0.1, dtype=torch.float64)
    # Weight 0.5 - 2 * 0.1: the third of five.
    pulled = cs_plus(differences, weights, budget=0.1)
    assert pulled.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert cs_plus(differences, weights, budget=0.25).tolist() == [0.0] * 5


def test_clipped_gossip_clips_to_the_spread_of_the_closest() -> None:
    differences = torch.diag(torch.tensor([1.0, 1.0, 1.0, 10.0]))
    weights = torch.full((4,), 0.2, dtype=torch.float64)
    # tau^2 = (0.2 + 0.2 + 0.2) / 0.2
    pulled = clipped_gossip(differences, weights, budget=0.2)
    assert pulled.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.2 * 3**0.5])


def test_without_liars_everybody_is_heard_as_they_are() -> None:
    differences = close(4)
    assert torch.equal(
        robust_pull("cs+", liars=0)(differences, equal(4)), plain_pull(differences, equal(4))
    )
