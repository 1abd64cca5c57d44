"""The arithmetic that everything else leans on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.quorum import MAX_VALIDATORS, faults, quorum, weak
from shoal.consensus.validators import Validators


@pytest.mark.parametrize(
    ("n", "f", "q"),
    [
        (1, 0, 1),
        (2, 0, 2),
        (3, 0, 2),
        (4, 1, 3),
        (5, 1, 4),
        (6, 1, 4),
        (7, 2, 5),
        (8, 2, 6),
        (9, 2, 6),
        (10, 3, 7),
        (31, 10, 21),
    ],
)
def test_the_table_of_the_design(n: int, f: int, q: int) -> None:
    assert (faults(n), quorum(n), weak(n)) == (f, q, f + 1)


@given(st.integers(1, MAX_VALIDATORS))
def test_two_quorums_share_an_honest_node_and_the_honest_are_a_quorum(n: int) -> None:
    assert 2 * quorum(n) - n >= faults(n) + 1
    assert 2 * (quorum(n) - 1) - n < faults(n) + 1, "no smaller quorum would do"
    assert quorum(n) <= n - faults(n)


def test_a_voting_set_is_sorted_distinct_and_bounded() -> None:
    keys = tuple(bytes([i]) * 32 for i in range(32))
    with pytest.raises(ValueError, match="1 to 31"):
        Validators(bytes(32), 0, keys)
    with pytest.raises(ValueError, match="1 to 31"):
        Validators(bytes(32), 0, ())
    with pytest.raises(ValueError, match="sorted"):
        Validators(bytes(32), 0, (keys[1], keys[0]))
    with pytest.raises(ValueError, match="sorted"):
        Validators(bytes(32), 0, (keys[1], keys[1]))
    with pytest.raises(ValueError, match="32 bytes"):
        Validators(bytes(31), 0, keys[:4])
