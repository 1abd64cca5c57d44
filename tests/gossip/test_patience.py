"""Deadlines are learned, bounded, and never run while this process stands still."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gossip.patience import (
    DEADLINE_FIRST_S,
    DEADLINE_MAX_S,
    DEADLINE_MIN_S,
    GAP_MAX_S,
    HEALTH_MAX,
    SAMPLES,
    SILENCE_MAX_S,
    SILENCE_MIN_S,
    AwakeClock,
    LocalHealth,
    RoundTrips,
    reconnect_allowed_s,
    silence_allowed_s,
    suspicion_timeout_s,
)

seconds = st.floats(0, 100, allow_nan=False)


@given(st.lists(seconds, max_size=80))
def test_a_deadline_is_always_within_its_bounds(samples: list[float]) -> None:
    trips = RoundTrips()
    for sample in samples:
        trips.add(sample)
    assert DEADLINE_MIN_S <= trips.deadline_s() <= DEADLINE_MAX_S


def test_a_deadline_is_the_median_and_six_deviations() -> None:
    trips = RoundTrips()
    for sample in (0.30, 0.32, 0.34, 0.36, 0.38):
        trips.add(sample)
    assert trips.usual_s == pytest.approx(0.34 + 6 * 0.02)
    assert trips.deadline_s() == pytest.approx(0.46)


@given(st.floats(0.21, 1.0), st.lists(seconds, max_size=SAMPLES // 3))
def test_a_third_of_wild_samples_does_not_move_a_deadline_far(
    usual: float, wild: list[float]
) -> None:
    trips = RoundTrips()
    for index in range(SAMPLES - len(wild)):
        trips.add(usual * (1 + 0.01 * (index % 3)))
    for sample in wild:
        trips.add(sample)
    assert usual <= trips.deadline_s() <= 1.3 * usual


def test_a_new_peer_is_given_what_all_others_need_until_it_is_known() -> None:
    everybody = RoundTrips()
    assert RoundTrips(everybody).deadline_s() == DEADLINE_FIRST_S
    known = RoundTrips(everybody)
    for _ in range(8):
        known.add(0.5)
    assert RoundTrips(everybody).deadline_s() == pytest.approx(0.5)


@given(st.lists(st.booleans(), max_size=100))
def test_local_health_stays_between_one_and_nine(signs: list[bool]) -> None:
    health = LocalHealth()
    for good in signs:
        (health.better if good else health.worse)()
        assert 1 <= health.factor <= 1 + HEALTH_MAX


@given(st.lists(st.floats(0, 30), max_size=50))
def test_awake_time_and_lateness_add_up_to_the_clock(gaps: list[float]) -> None:
    clock, now = AwakeClock(), 100.0
    clock.advance(now)
    for gap in gaps:
        now += gap
        late = clock.advance(now)
        assert late == pytest.approx(max(0.0, gap - GAP_MAX_S), abs=1e-6)
    assert clock.awake_s + clock.late_s == pytest.approx(now - 100.0)


@given(seconds, st.integers(0, 10), st.integers(0, 10))
def test_confirmations_only_shorten_a_suspicion(least: float, have: int, expected: int) -> None:
    now = suspicion_timeout_s(least, have, expected)
    assert least <= now <= 2 * least
    assert suspicion_timeout_s(least, have + 1, expected) <= now
    assert suspicion_timeout_s(least, max(have, expected), expected) == least


def test_the_shape_of_a_suspicion_is_lifeguards() -> None:
    assert suspicion_timeout_s(3.0, 0, 3) == 6.0
    assert suspicion_timeout_s(3.0, 1, 3) == pytest.approx(6 - 3 * math.log(2) / math.log(4))
    assert suspicion_timeout_s(3.0, 3, 3) == 3.0


@given(seconds, seconds)
def test_silence_is_allowed_for_longer_by_who_came_back_later(
    deadline_s: float, longest: float
) -> None:
    allowed = silence_allowed_s(deadline_s, longest)
    assert SILENCE_MIN_S <= allowed <= SILENCE_MAX_S
    assert allowed >= min(SILENCE_MAX_S, 1.5 * longest)


def test_a_reset_link_gets_five_round_trips_to_come_back() -> None:
    assert reconnect_allowed_s(0.002) == pytest.approx(0.61)
    assert reconnect_allowed_s(0.3) == pytest.approx(2.1)
    assert reconnect_allowed_s(None) == pytest.approx(5.6)
