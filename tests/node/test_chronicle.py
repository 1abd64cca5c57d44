"""The chronicle tells what happened, forgets what is old, and invents nothing."""

from types import SimpleNamespace
from typing import Any

from shoal.node.chronicle import KEPT, Chronicle
from shoal.node.explain import explain_reply
from shoal.node.explain_view import explain_view
from tests.node.fake_node import example_explanation
from tests.node.test_views import text_of

A, B, C, D = (bytes([each]) * 32 for each in (1, 2, 3, 4))


def record(height: int, cut: list[tuple[bytes, int]], attempt: int = 0) -> Any:
    entries = [SimpleNamespace(member=member, sequence=number) for member, number in cut]
    newest = max((number for _, number in cut), default=0)
    return SimpleNamespace(height=height, proposer=A, attempt=attempt, round=newest, cut=entries)


def watch(chronicle: Chronicle, now: float, height: int, *counts: int) -> None:
    pending = dict(zip((A, B, C, D), counts, strict=True))
    chronicle.watch(now, height, pending, quorum=3, rounds_wanted=2)


def test_the_one_that_completes_the_quorum_was_waited_for() -> None:
    chronicle = Chronicle(lambda: {D: "dead"})
    watch(chronicle, 10.0, 1, 0, 0, 0, 0)
    watch(chronicle, 12.0, 1, 2, 0, 0, 0)
    watch(chronicle, 13.0, 1, 2, 3, 0, 1)
    watch(chronicle, 17.0, 1, 4, 3, 2, 1)
    chronicle.due(17.0, 1, "a quorum was ready")
    watch(chronicle, 17.5, 1, 4, 3, 2, 2)
    cut = [(A, 1), (A, 2), (B, 1), (B, 2), (C, 1), (C, 2)]
    pending = [*cut, (D, 1), (D, 2)]
    chronicle.committed(18.0, record(1, cut, attempt=1), pending, seen=True)
    reply = explain_reply(chronicle, [A, B, C, D], 2)
    assert reply.known and reply.committed and reply.attempt == 1
    assert (reply.due_seconds, reply.committed_seconds) == (7.0, 8.0)
    seen = {bytes.fromhex(each.node_id): each for each in reply.members}
    assert [member for member, each in seen.items() if each.waited_for] == [C]
    assert seen[D].left_out == 2 and seen[D].included == 0 and seen[D].liveness == "dead"
    assert seen[B].ready_seconds == 3.0 and (seen[B].first_round, seen[B].last_round) == (1, 2)


def test_what_was_not_seen_is_not_timed() -> None:
    chronicle = Chronicle(dict)
    chronicle.committed(5.0, record(7, [(A, 70)]), [], seen=False)
    reply = explain_reply(chronicle, [A, B], 70)
    assert reply.known and reply.committed
    assert reply.due_seconds < 0 and reply.committed_seconds < 0
    assert not explain_reply(chronicle, [A], 3).known
    assert not explain_reply(chronicle, [A], 71).known


def test_a_round_that_is_in_no_cut_yet_is_that_of_the_height_in_hand() -> None:
    chronicle = Chronicle(dict)
    chronicle.committed(5.0, record(1, [(A, 1)]), [], seen=True)
    watch(chronicle, 6.0, 2, 1, 0, 0, 0)
    reply = explain_reply(chronicle, [A], 2)
    assert reply.known and not reply.committed and reply.height == 2


def test_it_keeps_a_bounded_number_of_heights() -> None:
    chronicle = Chronicle(dict)
    for height in range(1, 3 * KEPT):
        watch(chronicle, height, height, 2, 2, 2, 2)
        chronicle.committed(height, record(height, [(A, height)]), [], seen=True)
    assert chronicle.rounds == (2 * KEPT, 3 * KEPT - 1)


def test_the_view_says_it_in_words() -> None:
    text = text_of(explain_view(example_explanation()))
    for part in (
        "height 3 was due after 12.4 s: 3 of 4 validators had 8 deltas",
        "attempt 2",
        "committed 0.7 s after it was due",
        "waited for",
        "not ready",
        "17 to 24",
        "dead",
    ):
        assert part in text
    fresh = example_explanation()
    fresh.committed, fresh.due_seconds = False, -1.0
    assert "not due yet" in text_of(explain_view(fresh))
