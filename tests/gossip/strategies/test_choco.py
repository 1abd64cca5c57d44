"""Public copies are equal on both ends, or the edge knows that they are not."""

from dataclasses import replace
from typing import Any

import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.mixing import mixing_rows
from shoal.gossip.strategies.choco import KEPT_MESSAGES, Choco, Whole, stable_gamma
from shoal.gossip.strategies.strategy import Work
from shoal.gossip.topology import graph
from tests.gossip.strategies.builders import SCHEMA, Targets

CHOCO = Choco(SCHEMA, kept_per_chunk=512)


def ring(count: int = 6) -> tuple[Targets, Any]:
    world = Targets(CHOCO, count)
    return world, mixing_rows(graph("ring", world.ids))


def assert_copies_are_equal(world: Targets, rows: Any) -> None:
    for me in world.ids:
        for other in rows[me]:
            copy = world.states[me].copies[other]
            assert copy.anchor.root() == world.states[other].public.root()
            assert copy.number == world.states[other].number


def repair(world: Targets, me: bytes) -> list[Any]:
    answers: list[Any] = []
    for other, after in world.states[me].wanted.items():
        answers += CHOCO.answer(world.states[other], after)
    world.states[me] = CHOCO.repair(world.states[me], answers)
    return answers


def test_every_neighbour_has_the_same_integers() -> None:
    world, rows = ring()
    for number in range(8):
        world.round(number, rows)
        assert_copies_are_equal(world, rows)
    assert not any(state.wanted for state in world.states.values())


def test_a_gap_is_noticed_asked_for_and_filled_from_the_last_messages() -> None:
    world, rows = ring()
    me = world.ids[0]
    other = next(iter(rows[me]))
    world.round(0, rows)
    world.round(1, rows, lambda number, receiver, sender: (receiver, sender) != (me, other))
    assert not world.states[me].wanted, "nothing says yet that there was a second message"
    world.round(2, rows)
    assert world.states[me].wanted == {other: 1}
    sent = repair(world, me)
    assert [message.number for message in sent] == [2, 3]
    assert_copies_are_equal(world, rows)
    assert not world.states[me].wanted


def test_after_too_long_a_gap_the_whole_copy_comes() -> None:
    world, rows = ring(3)
    me = world.ids[0]
    other = next(iter(rows[me]))
    world.round(0, rows)
    for number in range(KEPT_MESSAGES + 1):
        world.round(
            number, rows, lambda number, receiver, sender: (receiver, sender) != (me, other)
        )
    world.round(99, rows)
    (sent,) = repair(world, me)
    assert isinstance(sent, Whole)
    assert sent.size_bytes > 4 * SCHEMA.layout.total
    assert_copies_are_equal(world, rows)


def test_a_copy_that_became_another_is_found_by_its_hash_and_replaced() -> None:
    world, rows = ring()
    me = world.ids[0]
    other = next(iter(rows[me]))
    world.round(0, rows)
    state = world.states[me]
    wrong = state.copies[other].anchor.copy()
    wrong.values[7] += 1
    copies = {**state.copies, other: replace(state.copies[other], anchor=wrong)}
    world.states[me] = replace(state, copies=copies)
    world.round(1, rows)
    assert world.states[me].wanted == {other: None}
    (sent,) = repair(world, me)
    assert isinstance(sent, Whole)
    assert_copies_are_equal(world, rows)


def test_an_edge_that_is_behind_mixes_on_neither_side() -> None:
    world, rows = ring(2)
    a, b = world.ids
    world.round(0, rows)
    world.round(1, rows, lambda number, receiver, sender: receiver != a)
    world.round(2, rows)
    # `a` noticed the gap; its next message says so, and `b` leaves it alone as well.
    world.round(3, rows)
    for me in (a, b):
        assert torch.equal(world.states[me].a, world.states[me].y)
    repair(world, a)
    world.round(4, rows)
    world.round(5, rows)
    for me in (a, b):
        assert not torch.equal(world.states[me].a, world.states[me].y)


def test_a_newcomer_is_followed_after_one_whole_copy() -> None:
    world, rows = ring()
    for number in range(3):
        world.round(number, rows)
    back, donor = world.ids[0], world.ids[3]
    world.states[back] = CHOCO.join(back, world.states[donor], world.states[back].number)
    for number in range(3, 6):
        for me in world.ids:
            repair(world, me)
        world.round(number, rows)
    for me in world.ids:
        repair(world, me)
    assert_copies_are_equal(world, rows)
    assert not any(state.wanted for state in world.states.values())


def test_states_are_never_changed_in_place() -> None:
    world, rows = ring(3)
    world.round(0, rows)
    before = dict(world.states)
    tensors = {me: (s.a.clone(), s.y.clone(), s.public.root()) for me, s in before.items()}
    world.round(1, rows)
    for me, (a, y, root) in tensors.items():
        assert torch.equal(before[me].a, a)
        assert torch.equal(before[me].y, y)
        assert before[me].public.root() == root


def test_gamma_follows_the_density() -> None:
    assert stable_gamma(4096) == 0.8
    assert 0.3 < stable_gamma(256) < stable_gamma(512) < stable_gamma(1024) < 0.6


def test_what_is_not_finite_is_not_said() -> None:
    world, _ = ring(2)
    state = world.states[world.ids[0]]
    began = CHOCO.start(state)
    broken = began.clone()
    broken[3] = float("nan")
    after, message = CHOCO.speak(state, Work(began, broken, 1, 1))
    assert message is None
    assert torch.isfinite(after.a).all()
    assert after.public.root() == Anchor.from_weights(SCHEMA, world.genesis).root()
