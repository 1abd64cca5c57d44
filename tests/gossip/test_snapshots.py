"""What all agree on is the same for all, and lies among what honest members have."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.anchor import MAGNITUDE_MAX, Anchor
from shoal.gossip.errors import GossipError
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.snapshots import (
    COMMITTEE_SIZE,
    Snapshot,
    choose,
    committee,
    median_model,
    needed,
    take_snapshot,
)
from tests.gossip.builders import SCHEMA, hashed_weights, member

SEED = b"the last root"
OTHER = ModelSchema((TensorSchema("another", (SCHEMA.layout.total,), 28),))


def snapshot(who: int, values: torch.Tensor) -> Snapshot:
    return Snapshot(member(who), Anchor(SCHEMA, values.to(torch.int32)))


def honest(who: int) -> Snapshot:
    """Near what everybody has, and not quite it."""
    taken = take_snapshot(
        member(who), SCHEMA, hashed_weights("all") + 0.01 * hashed_weights(f"own {who}")
    )
    assert taken is not None
    return taken


def garbage(who: int, value: int = MAGNITUDE_MAX) -> Snapshot:
    return snapshot(who, torch.full((SCHEMA.layout.total,), value))


def agreed(snapshots: list[Snapshot], seed: bytes = SEED) -> Anchor:
    members = [each.sender for each in snapshots]
    return median_model(choose(snapshots, members, seed, SCHEMA))


@given(
    count=st.integers(1, 24),
    lies=st.lists(st.integers(-MAGNITUDE_MAX, MAGNITUDE_MAX), min_size=8, max_size=8),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=40)
def test_no_order_matters_and_a_third_of_liars_never_leaves_the_honest_range(
    count: int, lies: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    liars = (count - 1) // 3
    true = [honest(who) for who in range(liars + 1, count + 1)]
    everybody = [garbage(who, lies[who - 1]) for who in range(1, liars + 1)] + true
    key = rng.randbytes(8)
    found = agreed(everybody, key)
    assert agreed(rng.sample(everybody, count), key).root() == found.root()
    models = torch.stack([each.model.values for each in true])
    assert (found.values >= models.amin(dim=0)).all()
    assert (found.values <= models.amax(dim=0)).all()


def test_one_liar_of_eight_moves_it_less_than_honest_members_are_apart() -> None:
    """Where a mean of the same snapshots would be beyond anything that an honest one has."""
    crowd = [honest(who) for who in range(1, 8)]
    models = torch.stack([each.model.to_weights() for each in crowd])
    mean = models.mean(dim=0)
    spread = float((models - mean).norm(dim=1).max())
    seeds = [bytes([number]) for number in range(8)]
    lied = [*crowd, garbage(8)]
    members = [each.sender for each in lied]
    counted = [choose(lied, members, seed, SCHEMA) for seed in seeds]
    assert any(lied[7] in chosen for chosen in counted), "the liar counts under some of the seeds"
    for chosen in counted:
        assert float((median_model(chosen).to_weights() - mean).norm()) < spread
        if lied[7] in chosen:
            naive = torch.stack([each.model.to_weights() for each in chosen]).mean(dim=0)
            assert float((naive - mean).norm()) > 10 * spread


def test_of_two_in_the_middle_half_is_taken_down_whatever_the_sign() -> None:
    size = SCHEMA.layout.total
    for low, high, middle in ((3, 6, 4), (-6, -3, -5), (-1, 0, -1), (2, 2, 2)):
        pair = [snapshot(1, torch.full((size,), low)), snapshot(2, torch.full((size,), high))]
        assert set(agreed(pair).values.tolist()) == {middle}
    edge = [garbage(1), garbage(2)]
    assert set(agreed(edge).values.tolist()) == {MAGNITUDE_MAX}, "the sum is beyond int32"


def test_two_thirds_count_and_the_seed_says_which() -> None:
    assert [needed(n) for n in (1, 2, 3, 4, 7, 8, 31)] == [1, 2, 2, 3, 5, 6, 21]
    crowd = [honest(who) for who in range(1, 9)]
    members = [each.sender for each in crowd]
    chosen = {
        frozenset(s.sender for s in choose(crowd, members, bytes([key]), SCHEMA))
        for key in range(20)
    }
    assert {len(each) for each in chosen} == {6} and len(chosen) > 5


def test_who_is_silent_or_sends_what_is_no_snapshot_is_passed_over() -> None:
    crowd = [honest(who) for who in range(1, 9)]
    members = [each.sender for each in crowd]
    first, second = choose(crowd, members, SEED, SCHEMA)[:2]
    rest = [each for each in crowd if each not in (first, second)]
    beyond = Snapshot(first.sender, garbage(1, MAGNITUDE_MAX + 1).model)
    foreign = Snapshot(second.sender, Anchor(OTHER, second.model.values))
    found = choose([*rest, beyond, foreign], members, SEED, SCHEMA)
    assert {each.sender for each in found} == {each.sender for each in rest}
    with pytest.raises(GossipError) as caught:
        choose([*rest[1:], beyond], members, SEED, SCHEMA)
    assert caught.value.reason == "too-few-snapshots"


def test_strangers_do_not_count() -> None:
    crowd = [honest(who) for who in range(1, 5)]
    members = [each.sender for each in crowd]
    assert choose([garbage(9), *crowd], members, SEED, SCHEMA) == choose(
        crowd, members, SEED, SCHEMA
    )


def test_the_price_does_not_grow_above_a_committee() -> None:
    many = [bytes([number]) * 32 for number in range(200)]
    few = committee(many, SEED)
    assert len(few) == COMMITTEE_SIZE
    assert few == committee(many[::-1], SEED) != committee(many, b"the next root")


def test_what_is_not_finite_or_too_large_is_no_snapshot() -> None:
    weights = hashed_weights("model")
    for value in (float("nan"), float("inf"), 1000.0):
        broken = weights.clone()
        broken[5] = value
        assert take_snapshot(member(1), SCHEMA, broken) is None
    taken = take_snapshot(member(1), SCHEMA, weights)
    assert taken is not None and taken.size_bytes == 4 * SCHEMA.layout.total + 192
