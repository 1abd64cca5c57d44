"""The relay, one conversation at a time."""

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from shoal.gossip.book import DeltaBook
from shoal.gossip.delta import DeltaHeader, DeltaReference
from shoal.gossip.relay import OFFERS_MAX, Relay, RelaySettings
from shoal.gossip.relay_events import (
    Announce,
    Announced,
    Effect,
    Event,
    Fetch,
    FetchFailed,
    Held,
    LinkDown,
    LinkUp,
    Refused,
    SendSummary,
    SummaryReceived,
    Tick,
    Unwanted,
    Wanted,
)
from shoal.gossip.settled import SettledState
from tests.gossip.builders import MESH, epoch, header, member

A, B, C = (member(number) for number in (1, 2, 3))
P, Q, R = (member(number) for number in (11, 12, 13))


class Desk:
    """A relay with its book, and a clock that is moved by hand."""

    def __init__(self, *peers: bytes, **changes: Any) -> None:
        self.book = DeltaBook(MESH, SettledState.genesis(epoch(0, 4), staleness=2))
        self.settings = replace(RelaySettings(fetch_timeout_s=10.0), **changes)
        self.relay = Relay(self.book, self.settings, random.Random(1))
        self.now = 0.0
        for peer in peers:
            assert self.tell(LinkUp(peer)) == [SendSummary(peer)]

    def tell(self, event: Event) -> list[Effect]:
        return self.relay.step(self.now, event)

    def hold(self, head: DeltaHeader) -> list[Effect]:
        self.book.admit(head)
        return self.tell(Held(head))

    def after(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.tell(Tick())


def names(*headers: DeltaHeader) -> tuple[DeltaReference, ...]:
    return tuple(head.reference for head in headers)


def unnamed(head: DeltaHeader) -> DeltaReference:
    return DeltaReference(head.sender, head.sequence, b"")


D1, D2, D3, D4, D5 = (header(A, sequence) for sequence in (1, 2, 3, 4, 5))


def test_what_is_held_is_announced_to_everybody() -> None:
    desk = Desk(P, Q)
    assert desk.hold(D1) == [Announce(P, names(D1)), Announce(Q, names(D1))]


def test_who_announced_it_first_is_asked_and_not_told_again() -> None:
    desk = Desk(P, Q, R)
    assert desk.tell(Announced(P, names(D1))) == [Fetch(P, names(D1))]
    assert desk.tell(Announced(Q, names(D1))) == [], "it is on its way already"
    assert desk.relay.missing == 1
    assert desk.hold(D1) == [Announce(R, names(D1))]
    assert desk.relay.missing == 0


def test_announcements_of_what_is_held_settled_or_of_strangers_are_ignored() -> None:
    desk = Desk(P)
    desk.hold(D1)
    assert desk.tell(Announced(P, names(D1))) == []
    desk.book.commit(names(D1), epoch(1, 4))
    assert desk.tell(Announced(P, names(D1))) == []
    assert desk.tell(Announced(P, names(header(member(9), 1)))) == []
    assert desk.tell(Announced(R, names(D2))) == [], "R is not linked"


def test_a_pull_that_fails_goes_to_the_next_holder() -> None:
    desk = Desk(P, Q, R)
    desk.tell(Announced(P, names(D1)))
    desk.tell(Announced(Q, names(D1)))
    assert desk.tell(FetchFailed(P, D1.key)) == [Fetch(Q, names(D1))]
    assert desk.tell(FetchFailed(P, D1.key)) == [], "an old answer changes nothing"
    assert desk.tell(FetchFailed(Q, D1.key)) == [], "nobody else offered it"
    assert desk.tell(Announced(R, names(D1))) == [Fetch(R, names(D1))]


def test_a_pull_that_takes_too_long_goes_to_the_next_holder() -> None:
    desk = Desk(P, Q, summary_interval_s=1000.0)
    desk.tell(Announced(P, names(D1)))
    desk.tell(Announced(Q, names(D1)))
    assert desk.after(9.9) == []
    assert desk.after(0.2) == [Fetch(Q, names(D1))]
    assert desk.after(10.1) == []


def test_a_link_that_goes_down_takes_its_pulls_along() -> None:
    desk = Desk(P, Q)
    desk.tell(Announced(P, names(D1, D2)))
    desk.tell(Announced(Q, names(D2)))
    assert desk.tell(LinkDown(P)) == [Fetch(Q, names(D2))]
    assert desk.tell(LinkDown(P)) == []
    assert desk.relay.peers == (Q,)
    assert desk.tell(LinkUp(P)) == [SendSummary(P)]
    assert desk.tell(Announced(P, names(D1))) == [Fetch(P, names(D1))]


def test_a_peer_is_asked_for_a_few_things_at_a_time() -> None:
    desk = Desk(P, fetch_parallel=2)
    assert desk.tell(Announced(P, names(D1, D2, D3, D4))) == [Fetch(P, names(D1, D2))]
    assert desk.hold(D2) == [Fetch(P, names(D3))]
    assert desk.tell(FetchFailed(P, D1.key)) == [Fetch(P, names(D4))]
    assert desk.relay.missing == 2


def test_work_is_shared_between_holders() -> None:
    desk = Desk(P, Q, fetch_parallel=1)
    desk.tell(Announced(P, names(D1, D2, D3)))
    assert desk.tell(Announced(Q, names(D1, D2, D3))) == [Fetch(Q, names(D2))]
    assert desk.hold(D2) == [Fetch(Q, names(D3))]


def test_pulls_keep_to_the_byte_budget() -> None:
    desk = Desk(P, fetch_bytes=100, bytes_per_s=50.0, fetch_parallel=9, summary_interval_s=1e6)
    assert desk.tell(Announced(P, names(D1, D2, D3))) == [Fetch(P, names(D1))]
    assert desk.after(1.9) == []
    assert desk.after(0.2) == [Fetch(P, names(D2))]
    # What is not used is not saved up for a burst.
    assert desk.after(1000.0) == [Fetch(P, names(D3))]


def test_a_summary_shows_what_to_pull() -> None:
    one, other = Desk(P), Desk(Q)
    for head in (D1, D2, header(B, 9)):
        one.hold(head)
    other.hold(D2)
    effects = other.tell(SummaryReceived(Q, one.book.summary()))
    assert effects == [Fetch(Q, (unnamed(D1), unnamed(header(B, 9))))]
    assert one.tell(SummaryReceived(P, other.book.summary())) == []


def test_who_says_in_a_summary_that_it_has_it_is_not_told() -> None:
    desk, friend = Desk(P, Q), Desk()
    friend.hold(D1)
    desk.tell(SummaryReceived(P, friend.book.summary()))
    assert desk.hold(D1) == [Announce(Q, names(D1))]


def test_summaries_are_sent_again_and_again_at_uneven_times() -> None:
    desk = Desk(P, summary_interval_s=5.0)
    times = []
    for _ in range(1000):
        if SendSummary(P) in desk.after(0.1):
            times.append(desk.now)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 17 <= len(times) <= 24
    assert 3.9 <= min(gaps) < max(gaps) <= 6.2
    assert len({round(gap, 1) for gap in gaps}) > 4


def test_what_was_of_no_use_is_left_alone_for_a_while() -> None:
    desk = Desk(P, Q, refused_s=30.0, summary_interval_s=1e6)
    desk.tell(Announced(P, names(D1)))
    assert desk.tell(Refused(D1.key)) == []
    assert desk.tell(Announced(Q, names(D1))) == []
    desk.after(31.0)
    assert desk.tell(Announced(Q, names(D1))) == [Fetch(Q, names(D1))]


def test_what_a_cut_names_is_pulled_by_its_id_though_it_is_settled() -> None:
    desk = Desk(P, Q)
    lacking = desk.book.commit(names(D1), epoch(1, 4)).unknown
    assert desk.tell(Wanted(lacking, Q)) == [Fetch(Q, names(D1))]
    assert desk.tell(Held(D1)) == [], "it is settled: no news for anybody"
    assert desk.relay.missing == 0


def test_what_a_cut_names_is_tried_until_it_is_there() -> None:
    desk = Desk(P, Q, retry_s=1.0, summary_interval_s=1e6)
    desk.tell(Wanted(names(D1), P))
    assert desk.tell(FetchFailed(P, D1.key)) == []
    asked = set()
    for _ in range(20):
        (fetch,) = desk.after(1.1)
        assert isinstance(fetch, Fetch)
        asked.add(fetch.peer)
        desk.tell(FetchFailed(fetch.peer, D1.key))
        assert desk.after(0.5) == [], "no hot loop"
    assert asked == {P, Q}
    desk.tell(Unwanted((D1.key,)))
    assert desk.after(5.0) == []


def test_what_a_cut_names_comes_before_everything_else() -> None:
    desk = Desk(P, fetch_parallel=1)
    desk.tell(Announced(P, names(D1, D2)))
    desk.tell(Wanted(names(D5), P))
    assert desk.hold(D1) == [Fetch(P, names(D5))]


def test_without_links_what_a_cut_names_waits_for_one() -> None:
    desk = Desk()
    assert desk.tell(Wanted(names(D1))) == []
    desk.tell(LinkUp(P))
    assert desk.after(2.0) == [Fetch(P, names(D1))]


def test_a_rival_under_a_held_number_is_pulled_once_as_evidence() -> None:
    desk = Desk(P, Q)
    desk.hold(D1)
    rival = header(A, 1, frame="other")
    assert desk.tell(Announced(P, names(rival))) == [Fetch(P, names(rival))]
    assert desk.tell(Announced(Q, names(rival))) == []
    assert desk.tell(Held(rival)) == [], "the first one stays; the rival is not spread"
    assert desk.relay.missing == 0


def test_an_evil_peer_pushes_out_only_its_own_offers() -> None:
    desk = Desk(P, Q, fetch_parallel=1)
    desk.tell(Announced(Q, names(D1, D2)))
    for start in range(0, 3 * OFFERS_MAX, 1000):
        phantoms = tuple(DeltaReference(B, start + n + 1, b"x" * 32) for n in range(1000))
        desk.tell(Announced(P, phantoms))
    assert desk.relay.missing <= OFFERS_MAX + 3
    assert desk.hold(D1) == [Announce(P, names(D1)), Fetch(Q, names(D2))]


@pytest.mark.parametrize("seed", range(5))
def test_the_same_seed_and_events_give_the_same_effects(seed: int) -> None:
    def run() -> list[Effect]:
        desk = Desk(P, Q, R)
        rng = random.Random(seed)
        effects = []
        for _ in range(300):
            head = header(rng.choice([A, B, C]), rng.randint(1, 20))
            peer = rng.choice([P, Q, R])
            moves: list[Event] = [
                Announced(peer, names(head)),
                FetchFailed(peer, head.key),
                Refused(head.key),
                Wanted(names(head)),
                LinkUp(peer),
            ]
            effects += desk.tell(rng.choice(moves))
            effects += desk.after(rng.random())
        return effects

    assert run() == run()
