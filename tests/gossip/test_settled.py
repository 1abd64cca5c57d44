"""What the committed cuts settle, and nothing else."""

import random
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.delta import DeltaKey
from shoal.gossip.errors import DeltaError, GossipError
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.settled import SettledState
from tests.gossip.builders import epoch, member


def chain(cuts: list[list[DeltaKey]], *, staleness: int = 2, count: int = 4) -> SettledState:
    state = SettledState.genesis(epoch(0, count), staleness=staleness)
    for height, cut in enumerate(cuts, start=1):
        state = state.after(cut, epoch(height, count))
    return state


def key(who: int, sequence: int) -> DeltaKey:
    return member(who), sequence


def test_what_was_in_a_cut_is_settled_for_ever() -> None:
    cuts: list[list[DeltaKey]] = [[key(1, 1), key(1, 2)], [key(1, 3)], [], [], []]
    for commits in range(1, 6):
        state = chain(cuts[:commits])
        assert state.is_settled(key(1, 1)) and state.is_settled(key(1, 2))
        assert state.is_settled(key(1, 3)) is (commits >= 2)
        assert not state.is_settled(key(1, 4))
        assert not state.is_settled(key(2, 1))


def test_a_hole_closes_when_what_came_after_it_is_out_of_reach() -> None:
    # 2 was left out of cut 1, which has 3; made under height 0, it could enter cuts 1 to 3.
    state = chain([[key(1, 1), key(1, 3)]])
    assert not state.is_settled(key(1, 2))
    assert not chain([[key(1, 1), key(1, 3)], []]).is_settled(key(1, 2))
    closed = chain([[key(1, 1), key(1, 3)], [], []])
    assert closed.is_settled(key(1, 2))
    assert closed.floor(member(1)) == 3
    assert closed.recent == ((), ())


def test_with_no_staleness_a_cut_settles_everything_before_it() -> None:
    state = chain([[key(1, 3)]], staleness=0)
    assert state.floor(member(1)) == 3
    assert state.recent == ()


def test_a_far_jump_of_sequence_numbers_costs_nothing() -> None:
    far = 2**61
    state = chain([[key(1, 1), key(1, far)]])
    assert state.is_settled(key(1, far))
    assert not state.is_settled(key(1, far + 1))
    assert len(state.to_bytes()) < 2000


def test_epochs_that_deltas_may_name_are_kept_and_no_others() -> None:
    state = chain([[]] * 5)
    assert [parameters.height for parameters in state.epochs] == [3, 4, 5]
    assert state.parameters(3).height == 3
    for height, reason in ((2, "stale"), (6, "future")):
        with pytest.raises(DeltaError) as caught:
            state.parameters(height)
        assert caught.value.reason == reason


def test_the_floor_of_one_who_left_is_forgotten_when_his_deltas_are_all_stale() -> None:
    state = chain([[key(4, 9)], [], []])
    assert state.floor(member(4)) == 9
    for height in (4, 5):
        state = state.after([], epoch(height, 3))
        assert state.floor(member(4)) == 9
    state = state.after([], epoch(6, 3))
    assert state.floor(member(4)) == 0
    with pytest.raises(DeltaError):
        state.parameters(3)


cut_lists = st.lists(
    st.sets(st.tuples(st.integers(1, 4), st.integers(1, 40)), max_size=12), max_size=8
)


@given(cut_lists, st.integers(0, 4), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_the_bytes_depend_on_the_cuts_alone(
    cuts: list[set[tuple[int, int]]], staleness: int, seed: int
) -> None:
    rng = random.Random(seed)
    listed = [[key(*pair) for pair in sorted(cut)] for cut in cuts]
    shuffled = [rng.sample(cut, len(cut)) for cut in listed]
    state = chain(listed, staleness=staleness)
    again = chain(shuffled, staleness=staleness)
    assert again.to_bytes() == state.to_bytes()
    assert again.digest == state.digest
    assert SettledState.from_bytes(state.to_bytes()) == state


def test_another_cut_gives_another_digest() -> None:
    digests = {
        chain([[key(1, 1)]]).digest,
        chain([[key(1, 2)]]).digest,
        chain([[key(2, 1)]]).digest,
        chain([[key(1, 1)], []]).digest,
        chain([[], [key(1, 1)]]).digest,
        chain([[key(1, 1)]], staleness=3).digest,
        chain([[key(1, 1)]], count=5).digest,
    }
    assert len(digests) == 7


def test_the_digest_is_the_one_it_always_was() -> None:
    state = chain([[key(1, 1), key(2, 1)], [key(1, 2)], [key(3, 4), key(4, 1)]])
    assert state.digest.hex() == GOLDEN_DIGEST


GOLDEN_DIGEST = "f4836d53594b7620b833212493f8a875656702d37f3e8a946267806d184352d5"

GOOD = chain([[key(1, 1), key(2, 1)], [key(1, 2)], [key(1, 3), key(2, 2)]]).to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD + b"\0",
        b"\xff" * 8 + GOOD[8:],
        GOOD[:8] + b"\x11" + GOOD[9:],
        GOOD[:9] + b"\xff" + GOOD[10:],
        GOOD[:10] + b"\xff" + GOOD[11:],
        GOOD[:11] + b"\xff\xff" + GOOD[13:],
        GOOD[:13] + b"\xff\xff\xff\xff" + GOOD[17:],
        GOOD[:-8] + pack(">Q", 0),
        GOOD[:-8] + pack(">Q", 2**63),
        b"\xff" * 10_000_000,
    ],
)
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(GossipError) as caught:
        SettledState.from_bytes(data)
    assert caught.value.reason in {"bad-settled", "bad-parameters"}


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_whatever_is_accepted_has_one_encoding(position: int, value: int) -> None:
    data = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    try:
        state = SettledState.from_bytes(data)
    except GossipError:
        return
    assert state.to_bytes() == data


def test_cuts_out_of_order_are_refused() -> None:
    good = chain([[key(1, 1), key(2, 1)]])
    for cut in [(key(2, 1), key(1, 1)), (key(1, 1), key(1, 1))]:
        with pytest.raises(GossipError):
            SettledState(1, 2, good.epochs, (), (cut,))


def test_heights_are_committed_one_by_one() -> None:
    with pytest.raises(AssertionError):
        chain([[]]).after([], epoch(3, 4))


def test_parameters_of_the_wrong_height_are_refused() -> None:
    wrong: tuple[EpochParameters, ...] = (epoch(0, 4), epoch(2, 4))
    with pytest.raises(GossipError):
        SettledState(1, 2, wrong, (), ((),))
