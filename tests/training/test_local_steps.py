"""The schedule, and the steps that follow it."""

import pytest
import torch

from shoal.training.data import load
from shoal.training.local_steps import LATE_WARMUP_STEPS, LocalTrainer, Schedule
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import ByteTokenizer
from tests.training.worker_process import TINY_BERT, TINY_MODEL

SCHEDULE = Schedule(learning_rate=1.0, warmup_tokens=1000, schedule_tokens=11_000)
FAST = Schedule(learning_rate=3e-3, warmup_tokens=0, schedule_tokens=10**9)


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [(0, 0.1), (500, 0.55), (1000, 1.0), (6000, 0.55), (11_000, 0.1), (10**12, 0.1)],
)
def test_the_rate_rises_from_a_tenth_and_falls_back_to_it(tokens: int, rate: float) -> None:
    assert SCHEDULE.at(tokens) == pytest.approx(rate)


def test_a_schedule_may_be_all_warm_up_or_have_none() -> None:
    assert Schedule(learning_rate=1, warmup_tokens=0, schedule_tokens=10).at(0) == 1
    whole = Schedule(learning_rate=1, warmup_tokens=10, schedule_tokens=10)
    assert [whole.at(tokens) for tokens in (9, 11)] == pytest.approx([0.91, 0.1])


def make_trainer(learning_rate: float) -> tuple[FlatModel, LocalTrainer]:
    model = FlatModel(build_model(TINY_MODEL, seed=0))
    schedule = Schedule(learning_rate=learning_rate, warmup_tokens=0, schedule_tokens=10**9)
    corpus = load("builtin:0/64", ByteTokenizer())
    trainer = LocalTrainer(model, corpus, schedule, batch=4, sequence=32, weight_decay=0.1, seed=1)
    return model, trainer


def test_many_steps_learn() -> None:
    _, trainer = make_trainer(3e-3)
    losses = [float(trainer.step(round=1, step=step, tokens=0)) for step in range(60)]
    assert losses[0] == pytest.approx(5.55, abs=0.15), "nothing is known at first: log 256"
    assert sum(losses[-10:]) / 10 < 4.3


def test_a_masked_model_learns_and_its_steps_can_be_repeated() -> None:
    def losses(seed: int) -> list[float]:
        model = FlatModel(build_model({**TINY_BERT, "hidden_dropout_prob": 0.0}, seed=0))
        corpus = load("builtin:0/64", ByteTokenizer())
        trainer = LocalTrainer(
            model, corpus, FAST, batch=4, sequence=32, weight_decay=0.1, seed=seed
        )
        torch.manual_seed(0)
        return [float(trainer.step(round=1, step=step, tokens=0)) for step in range(120)]

    first = losses(1)
    assert first[0] == pytest.approx(5.55, abs=0.15), "nothing is known at first: log 256"
    assert sum(first[-20:]) / 20 < 4.3
    assert losses(1) == pytest.approx(first, abs=1e-4)


def test_a_step_is_adamw_with_a_clipped_gradient() -> None:
    # Against torch's own pieces, put together on the module's parameters one by one.
    model, trainer = make_trainer(1e-2)
    plain = build_model(TINY_MODEL, seed=0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    corpus = load("builtin:0/64", ByteTokenizer())
    for step in range(3):
        windows = corpus.batch(seed=1, round=1, step=step, batch=4, sequence=32)
        logits = plain(input_ids=windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trainer.step(round=1, step=step, tokens=0)
    expected = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
    torch.testing.assert_close(model.flat, expected, rtol=0, atol=2e-5)


def test_a_node_that_joins_late_warms_up_by_itself() -> None:
    def first_step(tokens: int) -> float:
        model, trainer = make_trainer(1e-3)
        before = model.flat.clone()
        trainer.step(round=1, step=0, tokens=tokens)
        return float((model.flat - before).norm())

    assert first_step(10**6) == pytest.approx(first_step(0) / LATE_WARMUP_STEPS, rel=0.02)
