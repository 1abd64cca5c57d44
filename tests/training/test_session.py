"""Rounds, rebases and what they leave of each other."""

from typing import Any

import pytest
import torch

from shoal.training.errors import TrainingError
from shoal.training.session import RoundOrder, SessionConfig, TrainingSession
from tests.training.worker_process import tiny_settings, tiny_weights


def make_session(**changes: Any) -> TrainingSession:
    session = TrainingSession(SessionConfig.from_json(tiny_settings(**changes)))
    session.rebase(torch.from_numpy(tiny_weights()))
    return session


def order(number: int = 1, *, steps: int = 3) -> RoundOrder:
    return RoundOrder(round=number, steps=steps, tokens_done=0, tokens_per_step=128)


def run(session: TrainingSession, number: int = 1, *, steps: int = 3) -> torch.Tensor:
    delta = torch.empty(session.parameters)
    session.run_round(order(number, steps=steps), delta, before_step=lambda: None)
    return delta


def test_the_first_rebase_is_where_training_starts() -> None:
    session = make_session()
    assert torch.equal(session.model.flat, torch.from_numpy(tiny_weights()))


def test_a_round_moves_the_weights_by_its_delta() -> None:
    session = make_session()
    delta = run(session)
    assert delta.abs().max() > 0
    torch.testing.assert_close(
        session.model.flat, torch.from_numpy(tiny_weights()) - delta, rtol=0, atol=1e-8
    )


def test_a_rebase_after_a_round_lands_exactly_on_the_weights() -> None:
    session = make_session()
    run(session)
    elsewhere = torch.from_numpy(tiny_weights(seed=5))
    session.rebase(elsewhere)
    assert torch.equal(session.model.flat, elsewhere)


def test_a_rebase_in_the_middle_of_a_round_moves_x_by_the_shift_and_keeps_the_progress() -> None:
    start = torch.from_numpy(tiny_weights())
    shift = torch.full_like(start, 0.25)
    session = make_session()
    positions: list[torch.Tensor] = []
    steps_before = 0

    def shift_before_the_third_step() -> None:
        nonlocal steps_before
        if steps_before == 2:
            positions.append(session.model.flat.clone())
            session.rebase(start + shift)
            positions.append(session.model.flat.clone())
        steps_before += 1

    delta = torch.empty(session.parameters)
    session.run_round(order(steps=3), delta, shift_before_the_third_step)

    before, after = positions
    torch.testing.assert_close(after - before, shift, rtol=0, atol=1e-7)
    # The delta holds the steps on both sides of the rebase, and nothing of the shift.
    progress = (start - before) + (after - session.model.flat)
    torch.testing.assert_close(delta, progress, rtol=0, atol=2e-7)
    assert (start - before).norm() > 0.01


def test_a_rebase_that_does_not_know_the_last_round_loses_nothing_of_it() -> None:
    session = make_session()
    first, second = run(session, 1), run(session, 2)
    start = torch.from_numpy(tiny_weights())
    session.rebase(start - first, newer=[second])
    torch.testing.assert_close(session.model.flat, start - first - second, rtol=0, atol=1e-7)


def test_the_optimiser_remembers_across_rounds_and_rebases() -> None:
    # One round of four steps, or two of two with a rebase to the same place between them: the
    # moments are what makes the third step the same.
    whole, halves = make_session(), make_session()
    for session, rounds in ((whole, 1), (halves, 2)):
        for part in range(rounds):
            steps = 4 // rounds
            for _ in range(steps):
                tokens = torch.arange(4 * 33).remainder(256).view(4, 33)
                session.model.loss(tokens).backward()  # type: ignore[no-untyped-call]
                session._trainer._optimizer.step()
                session.model.gradient.zero_()
            if part == 0:
                session.rebase(torch.from_numpy(tiny_weights()))
    assert torch.equal(whole.model.flat, halves.model.flat)
