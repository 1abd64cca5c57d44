"""Rendezvous hashing: everybody computes the same holders, evenly, and little moves."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.gossip.placement import copies, holders, ranking

ids = st.binary(min_size=32, max_size=32)
member_lists = st.lists(ids, min_size=1, max_size=20, unique=True)
keys = st.binary(max_size=40)


def member(number: int) -> bytes:
    return hashlib.sha256(f"member {number}".encode()).digest()


def key(number: int) -> bytes:
    return hashlib.sha256(f"key {number}".encode()).digest()


@pytest.mark.parametrize(("f", "r"), [(0, 3), (1, 3), (2, 3), (3, 4), (10, 11)])
def test_more_copies_than_liars_and_never_below_three(f: int, r: int) -> None:
    assert copies(f) == r


def test_the_holders_never_change_from_one_version_to_the_next() -> None:
    members = [member(number) for number in range(7)]
    assert [members.index(holder) for holder in ranking(key(0), members)] == [5, 3, 0, 2, 4, 1, 6]


@given(members=member_lists, key=keys, r=st.integers(1, 8), data=st.data())
def test_everybody_computes_the_same(
    members: list[bytes], key: bytes, r: int, data: st.DataObject
) -> None:
    chosen = holders(key, members, r)
    assert chosen == holders(key, data.draw(st.permutations(members)), r)
    assert chosen == holders(key, [*members, members[0]], r), "a repetition counts once"


@given(members=member_lists, key=keys, r=st.integers(1, 8))
def test_the_holders_are_distinct_members_and_as_many_as_there_can_be(
    members: list[bytes], key: bytes, r: int
) -> None:
    chosen = holders(key, members, r)
    assert len(set(chosen)) == len(chosen) == min(r, len(members))
    assert set(chosen) <= set(members)


@given(members=member_lists, key=keys, r=st.integers(1, 8), newcomer=ids)
def test_a_newcomer_displaces_the_last_holder_and_nobody_else(
    members: list[bytes], key: bytes, r: int, newcomer: bytes
) -> None:
    before = holders(key, members, r)
    after = holders(key, [*members, newcomer], r)
    assert [holder for holder in after if holder != newcomer] == list(before)[: len(after) - 1] or (
        after == before
    )


@given(members=member_lists, key=keys, r=st.integers(1, 8), data=st.data())
def test_only_the_keys_of_one_who_leaves_move(
    members: list[bytes], key: bytes, r: int, data: st.DataObject
) -> None:
    leaver = data.draw(st.sampled_from(members))
    staying = [each for each in members if each != leaver]
    before, after = holders(key, members, r), holders(key, staying, r)
    if leaver not in before:
        assert after == before
    else:
        assert [each for each in before if each != leaver] == list(after)[: len(before) - 1]
        next_in_rank = ranking(key, members)[r : r + 1]
        assert list(after)[len(before) - 1 :] == next_in_rank


def test_a_hundred_members_share_evenly_and_one_more_moves_its_share() -> None:
    r, count = 3, 100
    members = [member(number) for number in range(count)]
    grown = [*members, member(count)]
    # A thousand keys for each member.
    keys = [key(number) for number in range(1000 * count // r)]
    load: Counter[bytes] = Counter()
    for each in keys:
        load.update(holders(each, members, r))
    mean = len(keys) * r / count
    assert set(load) == set(members)
    assert max(load.values()) / mean <= 1.25
    sample = keys[:10_000]
    moved = sum(
        len(set(holders(each, members, r)) - set(holders(each, grown, r))) for each in sample
    )
    assert 0 < moved / (len(sample) * r) <= 1.2 / len(grown)
