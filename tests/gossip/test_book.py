"""The book: what may come in, what a cut settles, what two books tell each other."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.book import MISSING_MAX, PENDING_MAX, DeltaBook, Settled
from shoal.gossip.delta import DeltaHeader, DeltaKey, DeltaReference
from shoal.gossip.errors import DeltaError, EquivocationError
from shoal.gossip.settled import CUT_MAX, SettledState
from tests.gossip.builders import MESH, epoch, header, member


def new_book(*, staleness: int = 2, count: int = 4) -> DeltaBook:
    return DeltaBook(MESH, SettledState.genesis(epoch(0, count), staleness=staleness))


def commit(book: DeltaBook, *headers: DeltaHeader, count: int = 4) -> Settled:
    entries = [head.reference for head in headers]
    return book.commit(entries, epoch(book.height + 1, count))


def refusal(book: DeltaBook, head: DeltaHeader) -> str:
    with pytest.raises(DeltaError) as caught:
        book.admit(head)
    assert book.get(head.key) != head
    return caught.value.reason


A, B, C, D, STRANGER = (member(number) for number in (1, 2, 3, 4, 9))


def test_the_same_header_twice_is_a_duplicate_and_no_error() -> None:
    book = new_book()
    assert book.admit(header(A, 1)) is True
    assert book.admit(header(A, 1)) is False
    assert book.pending() == (header(A, 1),)


def test_a_delta_has_three_cuts_to_get_into_and_then_expires() -> None:
    book = new_book()
    late = header(A, 1, height=0)
    for height in (1, 2):
        assert book.admit(late) is (height == 1)
        commit(book)
        assert book.height == height
        assert late.reference in book.cut()
    settled = commit(book)
    assert settled.expired == (late,)
    assert book.pending() == ()
    assert refusal(book, late) == "stale"


def test_a_delta_from_the_future_has_a_reason_of_its_own() -> None:
    book = new_book()
    early = header(A, 1, height=1)
    assert refusal(book, early) == "future"
    commit(book)
    assert book.admit(early)


def test_what_was_in_a_cut_is_refused_for_ever() -> None:
    book = new_book()
    book.admit(header(A, 1))
    assert commit(book, header(A, 1)).included == (header(A, 1),)
    for _ in range(6):
        # The very header, and another one under the number, signed under the newest height.
        assert refusal(book, header(A, 1)) in {"replayed", "stale"}
        assert refusal(book, header(A, 1, height=book.height, frame="again")) == "replayed"
        commit(book)


def test_strangers_and_other_meshes_are_refused() -> None:
    book = new_book()
    assert refusal(book, header(STRANGER, 1)) == "not-a-member"
    other = DeltaHeader(b"X" * 32, A, 1, 0, 8, 100, 1000, b"h" * 32)
    assert refusal(book, other) == "wrong-mesh"


def test_membership_is_that_of_the_epoch_the_delta_names() -> None:
    book = new_book(count=4)
    commit(book, count=5)
    joined = member(5)
    assert refusal(book, header(joined, 1, height=0)) == "not-a-member"
    assert book.admit(header(joined, 1, height=1))
    commit(book, count=3)
    # D left with height 2; what it made under height 1 still counts.
    assert book.admit(header(D, 1, height=1))
    assert refusal(book, header(D, 2, height=2)) == "not-a-member"


def test_two_headers_under_one_number_are_evidence_and_the_first_one_stays() -> None:
    book = new_book()
    first, second = header(A, 1, frame="x"), header(A, 1, frame="y")
    book.admit(first)
    with pytest.raises(EquivocationError) as caught:
        book.admit(second)
    assert caught.value.reason == "equivocation"
    assert (caught.value.first, caught.value.second) == (first, second)
    assert book.pending() == (first,)


def test_a_cut_that_names_the_other_header_is_right() -> None:
    book = new_book()
    first, second = header(A, 1, frame="x"), header(A, 1, frame="y")
    book.admit(first)
    assert book.lacking([second.reference]) == (second.reference,)
    assert book.examine(second).height == 0
    settled = commit(book, second)
    assert settled == Settled(included=(), unknown=(second.reference,), expired=(first,))
    assert refusal(book, first) == refusal(book, second) == "replayed"


def test_a_cut_with_a_delta_never_seen_here_says_so() -> None:
    book = new_book()
    book.admit(header(A, 1))
    settled = commit(book, header(A, 1), header(B, 1))
    assert settled == Settled((header(A, 1),), (header(B, 1).reference,), ())


def test_a_committed_later_number_ends_an_earlier_one_two_cuts_on() -> None:
    """An honest sender's heights do not decrease; one that does it all the same loses."""
    book = new_book()
    commit(book)
    backwards = header(A, 1, height=1)
    book.admit(backwards)
    book.admit(header(A, 2, height=0))
    commit(book, header(A, 2, height=0))
    assert commit(book).expired == ()
    # Made under height 1 it could have entered cut 4, but 2 was in cut 2: settled with cut 4.
    assert commit(book).expired == (backwards,)


def test_cuts_are_due_when_a_quorum_has_enough_pending() -> None:
    book = new_book()
    for who in (A, B, C):
        assert not book.due([A, B, C, D], quorum=3, rounds_per_checkpoint=2)
        for sequence in (1, 2):
            book.admit(header(who, sequence))
    assert book.due([A, B, C, D], quorum=3, rounds_per_checkpoint=2)
    assert not book.due([A, B, D], quorum=3, rounds_per_checkpoint=2)
    commit(book, header(A, 2))
    assert not book.due([A, B, C, D], quorum=3, rounds_per_checkpoint=2)


def test_a_cut_is_everything_pending_in_order() -> None:
    book = new_book()
    heads = [header(who, sequence) for who in (C, A, B) for sequence in (2, 1, 5)]
    for head in heads:
        book.admit(head)
    assert list(book.cut()) == sorted(head.reference for head in heads)


def test_a_crowded_cut_gives_everybody_the_same_room() -> None:
    book = new_book(count=6)
    for who in range(1, 6):
        for sequence in range(1, PENDING_MAX + 1):
            book.admit(header(member(who), sequence))
    book.admit(header(member(6), 77))
    entries = book.cut()
    assert len(entries) == CUT_MAX
    assert list(entries) == sorted(entries)
    shares = [sum(entry.member == member(who) for entry in entries) for who in range(1, 7)]
    assert shares == [819, 819, 819, 819, 819, 1]
    assert max(entry.sequence for entry in entries if entry.member == member(3)) == 819


def test_one_member_cannot_fill_the_memory() -> None:
    book = new_book()
    for sequence in range(1, PENDING_MAX + 1):
        book.admit(header(A, 2**40 + 1000 * sequence))
    assert refusal(book, header(A, 1)) == "too-many-pending"
    assert book.admit(header(B, 1))


def test_a_member_that_was_away_for_thousands_of_rounds_is_let_in_again() -> None:
    book = new_book()
    book.admit(header(A, 1))
    commit(book, header(A, 1))
    back = header(A, 5000, height=1)
    assert book.admit(back)
    assert commit(book, back).included == (back,)


def test_two_books_find_out_what_the_other_has() -> None:
    one, other = new_book(), new_book()
    for sequence in (1, 2, 4, 900):
        one.admit(header(A, sequence))
    other.admit(header(A, 2))
    other.admit(header(B, 7))
    assert other.missing(one.summary()) == [(A, 1), (A, 4), (A, 900)]
    assert one.missing(other.summary()) == [(B, 7)]
    for book in (one, other):
        assert all(len(bitmap) <= 128 for _, bitmap in book.summary().values())


def test_a_summary_tells_the_newest_where_numbers_are_far_apart() -> None:
    one = new_book()
    for sequence in (1, 5000, 5001, 6024):
        one.admit(header(A, sequence))
    assert new_book().missing(one.summary()) == [(A, 5001), (A, 6024)]


def test_one_who_is_a_commit_behind_still_hears_of_what_was_in_it() -> None:
    ahead, behind = new_book(), new_book()
    ahead.admit(header(A, 1))
    commit(ahead, header(A, 1))
    assert behind.missing(ahead.summary()) == [(A, 1)]
    commit(behind, header(A, 1))
    assert behind.missing(ahead.summary()) == []


def test_summaries_of_nonsense_cost_little() -> None:
    book = new_book()
    book.admit(header(A, 3))
    full = b"\xff" * 128
    assert book.missing({STRANGER: (0, full)}) == []
    assert book.missing({A: (2**62, full), B: (0, full * 100)})[-1] == (B, 1024)
    everybody = {member(who): (0, full) for who in range(1, 5)}
    assert len(book.missing(everybody)) == 4 * 1024 - 1 <= MISSING_MAX


def test_a_book_comes_back_from_storage_as_it_was() -> None:
    book = new_book()
    for sequence in (1, 2, 3):
        book.admit(header(A, sequence))
    commit(book, header(A, 1))
    book.admit(header(B, 4, height=1))
    stored = [header(A, 1), *book.pending(), header(A, 9, height=5), header(STRANGER, 1)]
    again = DeltaBook.restore(MESH, SettledState.from_bytes(book.settled.to_bytes()), stored)
    assert again.pending() == book.pending()
    assert again.summary() == book.summary()
    assert again.cut() == book.cut()
    assert again.settled.digest == book.settled.digest


def honest_life(rng: random.Random, *, staleness: int, heights: int) -> list[list[DeltaHeader]]:
    """What honest members make under each height: numbers ascend, some are skipped."""
    made = []
    numbers = dict.fromkeys((A, B, C), 0)
    for height in range(heights):
        batch = []
        for who in numbers:
            for _ in range(rng.randint(0, 3)):
                numbers[who] += rng.choice([1, 1, 1, 2, 50])
                batch.append(header(who, numbers[who], height=height))
        made.append(batch)
    return made


@given(seed=st.integers(0, 2**32), staleness=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_book_agrees_with_one_that_never_forgets(seed: int, staleness: int) -> None:
    """Against the plain rule: a delta may enter cuts p+1 to p+1+staleness, once."""
    rng = random.Random(seed)
    made = honest_life(rng, staleness=staleness, heights=9)
    book, seen = new_book(staleness=staleness), new_book(staleness=staleness)
    everything: list[DeltaHeader] = []
    included: set[DeltaKey] = set()
    for height, batch in enumerate(made):
        everything += batch
        for head in rng.sample(everything, len(everything)):
            possible = head.height >= height - staleness and head.key not in included
            if not possible:
                assert refusal(book, head) in {"stale", "replayed"}
            elif rng.random() < 0.5:
                book.admit(head)
            if possible and rng.random() < 0.5:
                seen.admit(head)
        pending = {head.key for head in seen.pending()}
        assert pending == {h.key for h in everything if h.key in pending}
        chosen = [head for head in seen.pending() if rng.random() < 0.6]
        entries = [head.reference for head in chosen]
        included |= {head.key for head in chosen}
        mine, theirs = (b.commit(entries, epoch(height + 1, 4)) for b in (book, seen))
        assert not theirs.unknown
        assert {h.key for h in mine.included} | {e.key for e in mine.unknown} == {
            h.key for h in chosen
        }
        for result in (mine, theirs):
            assert all(h.height + 1 + staleness <= height + 1 for h in result.expired)
        assert book.settled.to_bytes() == seen.settled.to_bytes()


def test_a_reference_orders_by_member_then_sequence() -> None:
    assert DeltaReference(A, 2, b"z") < DeltaReference(A, 10, b"a") < DeltaReference(B, 1, b"a")
