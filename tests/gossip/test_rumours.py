"""News is told a bounded number of times, newest only, to whom it concerns first."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.gossip.liveness import RUMOURS_MAX, Alive, Suspicion
from shoal.gossip.rumours import QUEUED_MAX, Rumours, retransmissions

A, B, C = (bytes([each]) * 32 for each in (1, 2, 3))


def test_retransmissions_grow_with_the_logarithm() -> None:
    assert [retransmissions(n) for n in (1, 4, 9, 10, 99, 100)] == [4, 4, 4, 8, 8, 12]


@given(st.integers(1, 12), st.integers(1, 30))
def test_each_record_is_told_exactly_so_often(times: int, records: int) -> None:
    rumours = Rumours()
    for index in range(records):
        rumours.add(Alive(index.to_bytes(32, "big"), 1), times)
    told = 0
    while taken := rumours.take(A):
        assert len(taken) <= RUMOURS_MAX
        told += len(taken)
    assert told == times * records and not len(rumours)


def test_what_concerns_the_listener_goes_first() -> None:
    rumours = Rumours()
    for index in range(20):
        rumours.add(Alive(index.to_bytes(32, "big"), 1), 9)
    accusation = Suspicion(A, B, 5)
    rumours.add(accusation, 1)
    assert rumours.take(B)[0] == accusation
    assert accusation not in rumours.take(B)


def test_a_newer_word_replaces_an_older_one_and_ends_accusations() -> None:
    rumours = Rumours()
    rumours.add(Alive(B, 5), 4)
    rumours.add(Suspicion(A, B, 5), 4)
    rumours.add(Suspicion(A, C, 5), 4)
    rumours.forget(B, 6)
    rumours.add(Alive(B, 6), 4)
    assert set(rumours.take(C)) == {Alive(B, 6), Suspicion(A, C, 5)}


def test_the_queue_is_bounded() -> None:
    rumours = Rumours()
    for index in range(QUEUED_MAX + 50):
        rumours.add(Alive(index.to_bytes(32, "big"), 1), 4)
    assert len(rumours) == QUEUED_MAX
