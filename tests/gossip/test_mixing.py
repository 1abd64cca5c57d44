"""The weights of neighbours: rows of a matrix that keeps the mesh's objective where it is."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.mixing import mixing_rows, pair_row, spectral_gap
from shoal.gossip.topology import GRAPHS, graph

IDS = [hashlib.sha256(bytes([n])).digest() for n in range(64)]
SHARES = st.lists(st.floats(0.01, 100.0), min_size=2, max_size=40)


def matrix(rows: dict[bytes, dict[bytes, float]]) -> np.ndarray:
    order = sorted(rows)
    dense = np.array([[rows[me].get(other, 0.0) for other in order] for me in order])
    return dense + np.diag(1.0 - dense.sum(axis=1))


@given(SHARES, st.sampled_from(GRAPHS), st.binary(min_size=4, max_size=4))
@settings(deadline=None)
def test_rows_are_averages_and_the_weighted_mean_stays(
    shares: list[float], kind: str, seed: bytes
) -> None:
    members = sorted(IDS[: len(shares)])
    p = dict(zip(members, shares, strict=True))
    weights = matrix(mixing_rows(graph(kind, members, seed, 4), p))  # type: ignore[arg-type]
    assert (weights >= 0.0).all()
    assert weights.sum(axis=1) == pytest.approx(1.0)
    # Every node keeps a part of its own, so no mesh swings between two states.
    assert (np.diag(weights) > 0.0).all()
    flows = np.array(shares)[:, None] * weights
    np.testing.assert_allclose(flows, flows.T, rtol=1e-9, atol=1e-12)
    x = np.random.default_rng(0).normal(size=len(shares))
    assert np.dot(shares, weights @ x) == pytest.approx(np.dot(shares, x), abs=1e-8)


@pytest.mark.parametrize("kind", GRAPHS)
def test_equal_members_get_the_weights_of_metropolis_and_hastings(kind: str) -> None:
    links = graph(kind, IDS[:12], b"s", 4)
    for me, row in mixing_rows(links).items():
        for other, weight in row.items():
            assert weight == 1.0 / (1 + max(len(links[me]), len(links[other])))


def test_mixing_goes_to_the_weighted_mean_at_the_rate_of_the_gap() -> None:
    members = sorted(IDS[:20])
    p = {member: 1.0 + place % 3 for place, member in enumerate(members)}
    rows = mixing_rows(graph("random-regular", members, b"s", 4), p)
    weights = matrix(rows)  # type: ignore[arg-type]
    gap = spectral_gap(rows, p)
    x = np.random.default_rng(1).normal(size=20)
    shares = np.array([p[member] for member in members])
    target = np.dot(shares, x) / shares.sum()
    apart = [float(np.sqrt(np.dot(shares, (x - target) ** 2)))]
    for _ in range(40):
        x = weights @ x
        apart.append(float(np.sqrt(np.dot(shares, (x - target) ** 2))))
    for now, later in pairwise(apart):
        assert later <= (1.0 - gap) * now + 1e-12
    assert apart[-1] < 1e-3 * apart[0]


def test_better_connected_graphs_have_larger_gaps() -> None:
    gaps = [spectral_gap(mixing_rows(graph(kind, IDS, b"s", 6))) for kind in GRAPHS]
    assert gaps[0] < gaps[1] < min(gaps[2:])
    assert gaps[-1] == pytest.approx(1.0)


def test_two_that_meet_agree_on_their_weighted_mean() -> None:
    a, b = IDS[:2]
    p = {a: 3.0, b: 1.0}
    x = {a: 10.0, b: 2.0}
    after = {
        me: x[me] + pair_row(me, other, p)[other] * (x[other] - x[me])
        for me, other in ((a, b), (b, a))
    }
    assert after[a] == after[b] == 8.0
