"""The disk under a simulated node: what it keeps, what it refuses, and the two planted lies."""

import random

import pytest

from tests.simulation.disk import DamagedRows, Disk, DiskError
from tests.simulation.plan import Planted


def disk(*planted: Planted, error_rate: float = 0.0) -> Disk:
    return Disk(random.Random(1), error_rate=error_rate, planted=planted)


def test_what_was_committed_is_there_after_a_crash() -> None:
    honest = disk()
    honest.commit([("a", b"1"), ("b", b"2")])
    honest.commit([("a", None), ("c", b"3")])
    honest.crash()
    assert honest.load() == {"b": b"2", "c": b"3"}


def test_an_interrupted_transaction_leaves_nothing() -> None:
    honest = disk()
    honest.commit([("a", b"1")])
    for _ in range(20):
        honest.interrupted([("a", None), ("b", b"2"), ("c", b"3")])
    honest.crash()
    assert honest.load() == {"a": b"1"}


def test_a_refused_transaction_is_there_as_a_whole_or_not_at_all() -> None:
    outcomes = set()
    for seed in range(40):
        failing = Disk(random.Random(seed), error_rate=1.0)
        with pytest.raises(DiskError):
            failing.commit([("a", b"1"), ("b", b"2")])
        failing.crash()
        outcomes.add(tuple(sorted(failing.load())))
    assert outcomes == {(), ("a", "b")}


def test_errors_come_at_their_rate_and_stop_when_all_is_quiet() -> None:
    failing = disk(error_rate=0.2)
    refused = 0
    for number in range(1_000):
        try:
            failing.commit([(str(number), b"x")])
        except DiskError:
            refused += 1
    assert 150 < refused < 250
    failing.quiet()
    for number in range(100):
        failing.commit([(str(number), b"y")])


def test_every_flipped_bit_is_noticed() -> None:
    for seed in range(200):
        rotting = Disk(random.Random(seed))
        rotting.commit([("a", b"some row"), ("b", b"another"), ("empty", b"")])
        assert rotting.load()
        assert rotting.flip_bit() and rotting.rotted
        with pytest.raises(DamagedRows):
            rotting.load()


def test_an_empty_disk_has_no_bit_to_flip() -> None:
    assert not disk().flip_bit()


def test_the_planted_loss_takes_the_last_writes_and_nothing_older() -> None:
    kept = set()
    for seed in range(60):
        liar = Disk(random.Random(seed), planted=("lost-writes",))
        for number in range(5):
            liar.commit([(str(number), b"x")])
            assert str(number) in liar.rows, "it says that the row is there"
        liar.crash()
        rows = sorted(liar.load())
        assert rows == [str(number) for number in range(len(rows))], "a prefix of what was written"
        assert (len(rows) < 5) == (liar.lost > 0)
        kept.add(len(rows))
    assert len(kept) > 2


def test_the_planted_tear_leaves_a_part_of_a_transaction() -> None:
    left = set()
    for seed in range(60):
        liar = Disk(random.Random(seed), planted=("torn-writes",))
        liar.interrupted([("a", b"1"), ("b", b"2"), ("c", b"3")])
        liar.crash()
        left.add("".join(sorted(liar.load())))
    assert left == {"", "a", "ab", "abc"}
