"""What is kept, what may go, and that many nodes deciding alone never lose a piece."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.placement import holders
from shoal.node.leases import WHOLE, Leases
from shoal.node.rate import TokenBucket
from shoal.node.retention import DELTA_LOG, Piece, Retention, handed_over, plan_holdings

R = 3


def member(number: int) -> bytes:
    return hashlib.sha256(f"member {number}".encode()).digest()


def address(number: int) -> bytes:
    return hashlib.sha256(f"chunk {number}".encode()).digest()


MEMBERS = [member(number) for number in range(8)]
MANIFESTS = {10: [address(number) for number in range(6)]}
PIECES = {Piece(10, each) for each in (*MANIFESTS[10], DELTA_LOG)}


@pytest.mark.parametrize(
    ("newest", "whole_from", "archived"),
    [
        (0, 1, []),
        (1, 1, []),
        (11, 10, []),
        (12, 11, [10]),
        (45, 44, [20, 30, 40]),
    ],
)
def test_which_heights_are_kept(newest: int, whole_from: int, archived: list[int]) -> None:
    retention = Retention(keep_whole=2, keep_every=10, archived_max=3)
    assert retention.whole_from(newest) == whole_from
    assert retention.archived(newest) == archived


def test_pinned_heights_stay_beyond_the_cap_once_they_are_old() -> None:
    retention = Retention(archived_max=1, pinned=frozenset({3, 44, 90}))
    assert retention.archived(45) == [3, 40], "44 is whole and 90 does not exist yet"


def test_each_piece_is_wanted_by_the_members_that_rank_first_for_it() -> None:
    wanted = {me: plan_holdings(me, MEMBERS, R, [10], MANIFESTS, held=()).want for me in MEMBERS}
    for piece in PIECES:
        assert {me for me in MEMBERS if piece in wanted[me]} == set(holders(piece.key, MEMBERS, R))


def test_what_a_node_has_is_kept_handed_over_or_dropped() -> None:
    me = MEMBERS[0]
    forgotten = Piece(7, address(99))
    plan = plan_holdings(me, MEMBERS, R, [10], MANIFESTS, held={*PIECES, forgotten})
    assert plan.keep == {piece for piece in PIECES if me in holders(piece.key, MEMBERS, R)}
    assert set(plan.hand_over) == PIECES - plan.keep
    assert plan.drop == {forgotten}
    assert not plan.want
    for piece, above in plan.hand_over.items():
        assert above[:R] == holders(piece.key, MEMBERS, R)
        assert me not in above


def test_a_pinned_height_is_kept_entire_and_wanted_entire() -> None:
    me = MEMBERS[0]
    some = set(sorted(PIECES)[:2])
    plan = plan_holdings(me, MEMBERS, R, [10], MANIFESTS, held=some, pinned={10})
    assert plan.keep == some
    assert plan.want == PIECES - some
    assert not plan.hand_over


def test_one_who_is_no_member_yet_wants_nothing_and_throws_nothing_away() -> None:
    plan = plan_holdings(member(99), MEMBERS, R, [10], MANIFESTS, held=PIECES)
    assert not plan.want
    assert not plan.drop
    assert set(plan.hand_over) == PIECES


def test_a_height_whose_manifest_is_unknown_keeps_what_it_has() -> None:
    piece = Piece(20, address(0))
    plan = plan_holdings(MEMBERS[0], MEMBERS, R, [20], {}, held={piece})
    assert piece in plan.keep or piece in plan.hand_over
    assert not plan.drop


def test_a_piece_goes_only_when_enough_who_rank_above_have_it() -> None:
    above = tuple(MEMBERS[:4])
    assert not handed_over(above, MEMBERS[2:], R), "two of them and four who rank below"
    assert handed_over(above, MEMBERS[1:], R)
    assert not handed_over(above[:2], MEMBERS, R), "only two rank above: this one is a holder"


@settings(max_examples=60, deadline=None)
@given(
    has=st.dictionaries(
        st.sampled_from(sorted(PIECES)), st.sets(st.integers(0, 7), min_size=1), min_size=1
    ),
    changes=st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=6),
)
def test_however_members_come_and_go_the_last_r_copies_are_never_dropped(
    has: dict[Piece, set[int]], changes: list[tuple[bool, int]]
) -> None:
    """All look at the same moment and all act on what they saw: the worst there is."""
    present = set(range(8))
    for joins, number in [(True, 0), *changes]:
        (present.add if joins else present.discard)(number)
        ids = [MEMBERS[each] for each in sorted(present)]
        seen = {piece: {MEMBERS[each] for each in who & present} for piece, who in has.items()}
        for each in sorted(present):
            me = MEMBERS[each]
            held = {piece for piece, who in seen.items() if me in who}
            plan = plan_holdings(me, ids, R, [10], MANIFESTS, held)
            for piece, above in plan.hand_over.items():
                if handed_over(above, seen[piece], R):
                    has[piece].discard(each)
        for piece, who in has.items():
            assert len(who & present) >= min(R, len(seen[piece]))


def test_a_lease_lasts_while_somebody_goes_on_and_then_lapses() -> None:
    leases = Leases(quiet_s=60)
    leases.take(5, WHOLE, now=0)
    assert leases.held(5, address(1), now=59)
    assert not leases.held(6, address(1), now=59)
    leases.take(5, address(0), now=50)
    assert leases.held(5, address(1), now=109), "asking for one chunk goes on with the whole"
    assert not leases.held(5, WHOLE, now=110)


def test_asking_for_one_chunk_leases_that_chunk_alone() -> None:
    leases = Leases(quiet_s=60)
    leases.take(5, address(0), now=0)
    assert leases.held(5, address(0), now=59)
    assert not leases.held(5, address(1), now=1)
    assert not leases.held(5, address(0), now=60)


def test_a_bucket_lets_one_second_through_at_once_and_then_the_rate() -> None:
    bucket = TokenBucket(100)
    assert bucket.take(100, now=0) == 0
    assert bucket.take(50, now=0) == pytest.approx(0.5)
    assert bucket.take(100, now=1) == pytest.approx(0.5)
    assert bucket.take(100, now=99) == 0, "a long pause earns one second and no more"
    assert bucket.take(100, now=99) == pytest.approx(1.0)
