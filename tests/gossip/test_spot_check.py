"""Who is looked at, when the model is better off without somebody, and what comes of it."""

import math
import random
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.alignment import FLOOR_PERMILLE, FULL_PERMILLE
from shoal.gossip.spot_check import (
    BATCHES_MIN,
    HARM_FLOOR,
    HARMLESS,
    STEP_MAX,
    STRIKES_KEPT_CHECKS,
    STRIKES_OUT,
    Comparison,
    Strikes,
    compare,
    draw,
    louder,
    others_progressed,
)

MEMBERS = [bytes([number]) * 32 for number in range(5)]
ANN, BOB = MEMBERS[:2]
trusts = st.dictionaries(
    st.sampled_from(MEMBERS), st.integers(FLOOR_PERMILLE, FULL_PERMILLE), min_size=1
)
losses = st.lists(st.floats(0, 20), min_size=BATCHES_MIN, max_size=16)


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


# Whom to check.


@settings(deadline=None)
@given(trust=trusts, height=st.integers(1, 2**40), content=st.binary(min_size=32, max_size=32))
def test_everybody_draws_the_same_member_of_those_who_said_something(
    trust: dict[bytes, int], height: int, content: bytes
) -> None:
    drawn = draw(content, height, trust)
    assert drawn in trust
    assert drawn == draw(content, height, dict(reversed(trust.items())))
    suspects = {member for member, permille in trust.items() if permille < FULL_PERMILLE}
    if suspects and height % 2 == 0:
        assert drawn in suspects


def test_suspects_come_first_and_nobody_is_never_looked_at() -> None:
    trust = {**dict.fromkeys(MEMBERS, FULL_PERMILLE), BOB: 100}
    seen = Counter(draw(digest(height), height, trust) for height in range(2000))
    assert seen[BOB] > 1000, "every second height, and its share of the others"
    assert min(seen.values()) > 2000 / 2 / 5 / 2
    fair = Counter(draw(digest(number), 2, dict.fromkeys(MEMBERS, 1000)) for number in range(2000))
    assert all(300 < count < 500 for count in fair.values())


# The verdict.


def test_a_member_that_makes_every_batch_worse_is_harmful() -> None:
    without = [2.0, 3.0, 2.5, 1.9, 2.2, 4.0, 2.8, 2.1]
    said = [loss + 0.1 + 0.01 * (index % 3) for index, loss in enumerate(without)]
    found = compare(said, without)
    assert found is not None
    assert found.is_harmful
    assert math.isclose(found.nats, 0.109, abs_tol=0.002)
    swapped = compare(without, said)
    assert swapped is not None
    assert not swapped.is_harmful, "a member that helps as much"


def test_batches_differ_much_more_than_the_two_models_and_that_does_not_hide_harm() -> None:
    """Pairs: an unpaired test of these would see nothing."""
    rng = random.Random(0)
    without = [rng.uniform(1, 5) for _ in range(8)]
    found = compare([loss + 0.02 + rng.gauss(0, 0.002) for loss in without], without)
    assert found is not None
    assert found.is_harmful


def test_chance_is_no_harm() -> None:
    rng = random.Random(1)
    without = [rng.uniform(1, 5) for _ in range(8)]
    found = [
        compare([loss + rng.gauss(0, 0.1) for loss in without], without) for _ in range(10_000)
    ]
    harmful = sum(each is not None and each.is_harmful for each in found)
    assert harmful < 20, "Student's t with 7 degrees of freedom is above 5 in 0.08 %"


def test_certain_but_small_harm_is_not_worth_a_member() -> None:
    without = [2.0] * 8
    found = compare([2.0 + 0.9 * HARM_FLOOR] * 8, without)
    assert found is not None
    assert not found.is_harmful
    assert not Comparison(HARM_FLOOR, 0.0).is_harmful
    assert Comparison(HARM_FLOOR * 1.01, 0.0).is_harmful


def test_what_breaks_the_model_is_harmful_and_a_broken_model_says_nothing() -> None:
    fine = [2.0] * 8
    for broken in (math.nan, math.inf):
        found = compare([*fine[1:], broken], fine)
        assert found is not None
        assert found.is_harmful
        assert compare(fine, [*fine[1:], broken]) is None


def test_in_a_mesh_that_goes_astray_the_others_made_no_progress() -> None:
    before = [2.0, 3.0, 4.0, 2.5]
    assert others_progressed(before, [1.9, 2.9, 4.05, 2.4])
    assert not others_progressed(before, [2.1, 3.1, 4.1, 2.6])
    assert not others_progressed(before, before), "nothing is no progress"
    assert not others_progressed(before, [*before[1:], math.nan])
    assert not HARMLESS.is_harmful


@settings(deadline=None)
@given(losses, st.data())
def test_at_most_one_of_the_two_models_is_found_better(
    without: list[float], data: st.DataObject
) -> None:
    size = len(without)
    said = data.draw(st.lists(st.floats(0, 20), min_size=size, max_size=size))
    one, other = compare(said, without), compare(without, said)
    assert one is not None and other is not None
    assert not (one.is_harmful and other.is_harmful)
    assert compare(without[: BATCHES_MIN - 1], without[: BATCHES_MIN - 1]) is None


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**28), 2**28), min_size=4, max_size=4),
    st.integers(FLOOR_PERMILLE, FULL_PERMILLE),
)
def test_a_muted_word_is_heard_as_if_it_were_believed(steps: list[int], trust: int) -> None:
    table = np.array([steps], dtype=np.int32)
    loud = louder(table, trust)
    assert loud.dtype == np.int32
    exact = table.astype(np.float64) * FULL_PERMILLE / trust
    assert (np.abs(loud - np.clip(exact, -STEP_MAX, STEP_MAX)) <= 1).all()
    if trust == FULL_PERMILLE:
        assert (loud == table).all(), "nothing changes for who is believed wholly"


# Strikes.


def test_two_strikes_are_an_objection_and_a_harmless_check_forgives() -> None:
    strikes = Strikes()
    strikes.judge(ANN, harmful=True)
    assert (strikes.of(ANN), strikes.objected()) == (1, ())
    strikes.judge(ANN, harmful=False)
    strikes.judge(ANN, harmful=True)
    assert strikes.objected() == (), "never two in a row"
    strikes.judge(BOB, harmful=True)
    strikes.judge(ANN, harmful=True)
    assert strikes.objected() == (ANN,), "what was found of others in between does not matter"
    strikes.judge(ANN, harmful=True)
    assert (strikes.of(ANN), strikes.of(BOB)) == (STRIKES_OUT, 1)
    strikes.judge(ANN, harmful=False)
    assert (strikes.of(ANN), strikes.objected()) == (0, ())


def test_a_strike_of_long_ago_is_forgotten() -> None:
    strikes = Strikes()
    strikes.judge(ANN, harmful=True)
    for _ in range(STRIKES_KEPT_CHECKS - 1):
        strikes.judge(BOB, harmful=False)
    assert strikes.of(ANN) == 1
    strikes.judge(ANN, harmful=True)
    assert strikes.objected() == ()
    for _ in range(STRIKES_KEPT_CHECKS):
        strikes.judge(BOB, harmful=False)
    assert strikes.of(ANN) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MEMBERS), st.booleans()), max_size=200))
def test_objections_are_to_those_whose_last_two_checks_were_harmful_and_recent(
    verdicts: list[tuple[bytes, bool]],
) -> None:
    strikes = Strikes()
    for member, harmful in verdicts:
        strikes.judge(member, harmful=harmful)
    expected = set()
    for member in MEMBERS:
        own = [(n, h) for n, (who, h) in enumerate(verdicts) if who == member][-STRIKES_OUT:]
        recent = all(n >= len(verdicts) - STRIKES_KEPT_CHECKS for n, _ in own)
        if len(own) == STRIKES_OUT and recent and all(harmful for _, harmful in own):
            expected.add(member)
    assert set(strikes.objected()) == expected
