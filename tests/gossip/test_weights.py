"""What a member's deltas count for."""

import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.weights import (
    Member,
    objective_weights,
    pace_gain,
    step_factor,
    usual_steps,
)
from tests.gossip.builders import member


def weights(entries: list[tuple[int, int]], tokens: dict[int, int] | None = None) -> list[float]:
    """Weights of members 1, 2 ... given as (shard tokens, share permille)."""
    listed = [Member(member(n), *entry) for n, entry in enumerate(entries, start=1)]
    result = objective_weights(listed, {member(n): t for n, t in (tokens or {}).items()})
    assert [who for who, _ in result] == [entry.member for entry in listed]
    return [weight for _, weight in result]


def test_equal_members_count_alike() -> None:
    assert weights([(5, 1000)] * 4) == [0.25] * 4


def test_more_data_counts_for_more() -> None:
    assert weights([(100, 1000), (300, 1000)]) == [0.25, 0.75]


def test_a_node_that_gives_half_of_its_resources_counts_double_per_delta() -> None:
    assert weights([(100, 500), (100, 1000)]) == [2 / 3, 1 / 3]


def test_a_node_that_trained_three_times_as_much_counts_a_third_per_delta() -> None:
    assert weights([(100, 1000), (100, 1000)], {1: 300, 2: 100}) == [0.25, 0.75]


def test_silent_members_count_as_of_average_speed() -> None:
    assert weights([(10, 1000)] * 4, {1: 50, 2: 50}) == [0.25] * 4
    # Mean of those that trained: 100, so the fast one has C = 1.5 and the slow one 0.5.
    found = weights([(10, 1000)] * 3, {1: 150, 2: 50})
    ratios = [1 / 1.5, 1 / 0.5, 1.0]
    assert found == pytest.approx([ratio / sum(ratios) for ratio in ratios], rel=1e-15)


def test_a_shard_of_absurd_size_buys_no_more_than_three_shares() -> None:
    found = weights([(2**63, 1000)] + [(1000, 1000)] * 9)
    assert found[0] == 3 / 10
    assert found[1:] == pytest.approx([0.7 / 9] * 9, rel=1e-15)


def test_two_liars_are_both_capped() -> None:
    found = weights([(2**63, 1000), (2**60, 1000)] + [(1000, 1000)] * 10)
    assert found[:2] == [0.25, 0.25]
    assert found[2:] == pytest.approx([0.05] * 10, rel=1e-15)


def test_zeros_in_the_member_list_are_the_smallest_share_not_a_failure() -> None:
    assert weights([(0, 0), (1, 1)]) == [0.5, 0.5]


entry = st.tuples(st.integers(1, 2**63), st.integers(1, 1000))


@given(st.lists(entry, min_size=1, max_size=40), st.data())
@settings(deadline=None)
def test_weights_are_a_capped_distribution(
    entries: list[tuple[int, int]], data: st.DataObject
) -> None:
    count = len(entries)
    tokens = data.draw(st.dictionaries(st.integers(1, count), st.integers(1, 2**50)))
    found = weights(entries, tokens)
    assert sum(map(Fraction, found)) == pytest.approx(1, abs=1e-14)
    assert all(0 < weight <= 1 for weight in found)
    assert max(found) <= 3 / count * (1 + 1e-15) or count < 3
    active = {n: t for n, t in tokens.items() if t}
    mean = Fraction(sum(active.values()), len(active)) if active else Fraction(1)
    raw = [
        Fraction(shard * 1000, share) * (mean / active[n] if n in active else 1)
        for n, (shard, share) in enumerate(entries, start=1)
    ]
    # Whoever is below the cap has his exact proportion to everybody else below it.
    free = [n for n in range(count) if found[n] < 3 / count]
    for first, second in pairwise(free):
        assert found[first] / found[second] == pytest.approx(float(raw[first] / raw[second]))


@given(st.lists(entry, min_size=2, max_size=20), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_order_of_the_list_does_not_matter(entries: list[tuple[int, int]], seed: int) -> None:
    listed = [Member(member(n), *entry) for n, entry in enumerate(entries, start=1)]
    shuffled = random.Random(seed).sample(listed, len(listed))
    assert objective_weights(shuffled, {}) == objective_weights(listed, {})


# --- deltas of unequal steps ----------------------------------------------------------------------

MOST_STEPS = 2**32 - 1


def test_a_delta_counts_as_if_it_had_the_usual_steps_within_a_quarter_and_four_times() -> None:
    assert [step_factor(8, steps) for steps in (4, 8, 16)] == [2.0, 1.0, 0.5]
    assert step_factor(8, 1) == step_factor(MOST_STEPS, 1) == 4.0
    assert step_factor(8, 100) == step_factor(1, MOST_STEPS) == 0.25
    assert {step_factor(0, steps) for steps in (1, 8, MOST_STEPS)} == {1.0}, "there is no such rule"


def test_the_usual_steps_are_a_mean_of_members_however_often_each_speaks() -> None:
    slow, plain, fast = ((member(n), steps) for n, steps in ((1, 2), (2, 5), (3, 20)))
    assert usual_steps([slow, plain, fast]) == 4
    assert usual_steps([slow, plain, *[fast] * 50]) == 4
    assert usual_steps([plain, (member(4), 5), (member(5), 5)]) == 5
    assert usual_steps([(member(1), 3), (member(1), 4)]) == 3
    assert usual_steps([]) is None


def test_all_members_together_count_for_as_much_as_if_steps_did_not_matter() -> None:
    claims = [(member(n), 100 if n < 7 else 400) for n in range(1, 9)]
    usual = usual_steps(claims)
    assert usual is not None
    mean = sum(step_factor(usual, steps) for _, steps in claims) / len(claims)
    assert mean == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("claim", "usual"), [(1, 5), (MOST_STEPS, 10)])
def test_one_liar_of_four_moves_them_by_less_than_half(claim: int, usual: int) -> None:
    honest = [(member(n), 8) for n in (1, 2, 3)]
    assert usual_steps([*honest, (member(4), claim)]) == usual


@given(
    honest=st.lists(st.just(1000), min_size=3, max_size=20),
    liars=st.lists(st.sampled_from([1, MOST_STEPS]), max_size=20),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_third_of_liars_moves_them_no_further_than_to_half_or_four_thirds(
    honest: list[int], liars: list[int], seed: int
) -> None:
    claims = honest + liars[: (len(honest) - 1) // 2]
    deltas = [(member(n), steps) for n, steps in enumerate(claims, start=1)]
    usual = usual_steps(random.Random(seed).sample(deltas, len(deltas)))
    assert usual == usual_steps(deltas)
    assert usual is not None and 500 <= usual <= 1334


def shares_of(tokens: dict[bytes, int]) -> tuple[tuple[bytes, float], ...]:
    return objective_weights([Member(each, 1000, 1000) for each in tokens], tokens)


def test_members_of_one_pace_have_the_gain_that_was_measured() -> None:
    tokens = {member(n): 800 for n in range(1, 9)}
    assert pace_gain(shares_of(tokens), tokens) == 1.0
    assert pace_gain(shares_of(tokens), {}) == 1.0


def test_a_slow_member_does_not_slow_the_others_down() -> None:
    """Its weight is three times an equal share, and what it says is a quarter: for one of 16 that
    costs all together a tenth and more of their way, which the gain gives back."""
    tokens = {member(n): 1000 for n in range(1, 16)} | {member(16): 200}
    weights = shares_of(tokens)
    way = sum(weight * max(0.25, tokens[each] / 1000) for each, weight in weights)
    assert way < 0.9
    assert pace_gain(weights, tokens) * way == pytest.approx(1.0)


@given(
    honest=st.lists(st.integers(900, 1100), min_size=3, max_size=12),
    claims=st.lists(st.integers(0, MOST_STEPS), max_size=4),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_whoever_claims_what_the_gain_stays_within_its_bounds(
    honest: list[int], claims: list[int], seed: int
) -> None:
    tokens = {member(n): count for n, count in enumerate([*honest, *claims], start=1)}
    weights = shares_of(tokens)
    gain = pace_gain(weights, tokens)
    assert 1.0 <= gain <= 1.25
    shuffled = random.Random(seed).sample(weights, len(weights))
    assert pace_gain(shuffled, tokens) == gain, "the same bits in any order"
