"""Fast and slow members publish together."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.gossip.pace import FACTOR_MAX, NEAR, Pace

STEP_TOKENS = 1024


def _simulate(seconds_per_step: list[float], *, agreed: int, until_s: float) -> list[list[float]]:
    """When each member publishes; every member asks its own Pace before each of its rounds."""
    members = [bytes([index]) * 32 for index in range(len(seconds_per_step))]
    paces = [Pace(member) for member in members]
    published: list[list[float]] = [[] for _ in members]
    ends = [(agreed * each, index, agreed) for index, each in enumerate(seconds_per_step)]
    while True:
        now, index, steps = min(ends)
        if now > until_s:
            return published
        ends.remove((now, index, steps))
        published[index].append(now)
        for pace in paces:
            pace.heard(members[index], steps * STEP_TOKENS, now)
        coming = paces[index].steps(agreed)
        ends.append((now + coming * seconds_per_step[index], index, coming))


def test_a_member_five_times_slower_publishes_nearly_as_often_as_the_others() -> None:
    published = _simulate([1.0, 1.0, 1.0, 5.0], agreed=20, until_s=4000)
    late = [sum(moment > 2000 for moment in moments) for moments in published]
    # With rounds of equal length it would be a fifth as often; a quarter of H is the least.
    assert late[0] * 0.75 < late[3] < late[0] * 1.1


def test_a_member_three_times_faster_makes_longer_rounds() -> None:
    published = _simulate([1.0, 1.0, 1.0, 1 / 3], agreed=20, until_s=4000)
    late = [sum(moment > 2000 for moment in moments) for moments in published]
    assert late[0] * 0.9 < late[3] < late[0] * 1.1


def test_machines_of_one_kind_stay_equal() -> None:
    published = _simulate([1.0, 1.1, 0.9, 1.3], agreed=8, until_s=2000)
    gaps = {round((b - a) / 1.3) for a, b in zip(published[3][5:], published[3][6:], strict=False)}
    assert gaps == {8}


def test_who_is_silent_is_no_measure() -> None:
    pace, me, gone = Pace(b"me" * 16), b"me" * 16, b"go" * 16
    for moment in range(8):
        pace.heard(me, 1000, float(moment))
        pace.heard(gone, 9000, float(moment))
    assert pace.steps(10) != 10
    # Long after the other's last word there is nobody left to be compared with.
    for moment in range(8, 40):
        pace.heard(me, 1000, float(moment))
    assert pace.steps(10) == 10


def test_what_a_partition_held_back_comes_in_one_bunch_and_is_no_sign_of_speed() -> None:
    pace, me, other = Pace(b"me" * 16), b"me" * 16, b"ot" * 16
    for moment in range(8):
        pace.heard(me, 1000, float(moment))
    for _ in range(8):
        pace.heard(other, 1000, 7.5)
    pace.heard(me, 1000, 8.0)
    assert pace.steps(10) == 10


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 40), st.floats(0, 1e6)), max_size=60),
    st.integers(1, 100_000),
)
def test_whatever_is_heard_the_steps_stay_in_bounds(
    heard: list[tuple[int, int, float]], agreed: int
) -> None:
    pace, now = Pace(bytes(32)), 0.0
    for member, tokens, wait in heard:
        now += wait
        pace.heard(bytes([member]) * 32, tokens, now)
        steps = pace.steps(agreed)
        assert max(1, round(agreed / FACTOR_MAX)) <= steps <= FACTOR_MAX * agreed
        assert steps == agreed or not agreed / NEAR < steps < agreed * NEAR or agreed < 4
