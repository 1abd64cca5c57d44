"""Rounds, rebases and what they leave of each other."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from shoal.training.errors import TrainingError
from shoal.training.local_steps import Schedule
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


def test_a_round_may_bring_another_learning_rate_and_the_next_keeps_it() -> None:
    slow = Schedule(learning_rate=0.0, warmup_tokens=0, schedule_tokens=1)
    session = make_session()
    assert run(session).abs().max() > 0
    for schedule in (slow, None):
        delta = torch.empty(session.parameters)
        session.run_round(replace(order(2), schedule=schedule), delta, before_step=lambda: None)
        assert delta.abs().max() == 0, "nothing moves, and the next round has no word on it"


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
    # AdamW's first step moves every weight by the whole learning rate; with memory it does not.
    old = make_session()
    run(old, 1, steps=10)
    place = old.model.flat.clone()
    old.rebase(place)
    new = make_session()
    new.rebase(place)
    assert torch.equal(old.model.flat, new.model.flat)
    assert run(old, 2, steps=1).norm() < 0.9 * run(new, 2, steps=1).norm()


def test_equal_seeds_repeat_each_other_and_other_seeds_do_not() -> None:
    one, two, other = (run(make_session(seed=seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    assert (one - other).abs().max() > 1e-3


def test_a_report_says_what_was_done() -> None:
    ticks = iter([10.0, 12.5])
    config = SessionConfig.from_json(tiny_settings(batch=2, sequence=16))
    session = TrainingSession(config, clock=lambda: next(ticks))
    session.rebase(torch.from_numpy(tiny_weights()))
    delta = torch.empty(session.parameters)
    report = session.run_round(order(4, steps=3), delta, before_step=lambda: None)
    assert (report.round, report.steps, report.tokens, report.seconds) == (4, 3, 96, 2.5)
    assert 5 < report.loss < 6


def test_training_that_diverges_says_to_lower_the_learning_rate() -> None:
    session = make_session(learning_rate=0.02)
    session.rebase(torch.full((session.parameters,), float("inf")))
    with pytest.raises(TrainingError, match=r"round 3.*lower learning_rate \(now 0\.02\)"):
        run(session, 3)


def test_evaluation_leaves_training_as_it_was() -> None:
    session = make_session()
    before = session.model.flat.clone()
    weights = torch.from_numpy(tiny_weights(seed=9))
    loss = session.evaluate(weights)["loss"]
    assert 5 < loss < 6
    assert torch.equal(session.model.flat, before)
    assert session.evaluate(weights)["loss"] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learing_rate": 1}, "there is no training setting learing_rate"),
        ({"batch": 0}, "batch must be from 1 to 65536, not 0"),
        ({"batch": True}, "batch must be a number, not True"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, not 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate must be from 0.0 to 10.0, not nan"),
        ({"data": None}, "data must be a string, not None"),
        ({"model": "llama"}, "model must be a model configuration"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        SessionConfig.from_json(tiny_settings(**changes))


def test_a_missing_setting_is_named() -> None:
    settings = tiny_settings()
    del settings["schedule_tokens"]
    with pytest.raises(TrainingError, match="schedule_tokens is missing"):
        SessionConfig.from_json(settings)


def test_sequences_longer_than_the_model_can_see_are_refused() -> None:
    with pytest.raises(TrainingError, match="sequence is 65, but the model can look at 64"):
        make_session(sequence=65)
