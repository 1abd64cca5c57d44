"""Several processes of one node: the same steps as one makes, and one line when one is gone."""

import os
import select
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from shoal.training.data import load
from shoal.training.device import device_of_rank
from shoal.training.errors import TrainingError
from shoal.training.installed_tasks import task_config
from shoal.training.model import FlatModel, build_model
from shoal.training.session import RoundOrder, SessionConfig, TrainingSession, read_material
from shoal.training.tokenizer import ByteTokenizer
from tests.training.example_tasks import write_line
from tests.training.worker_process import (
    EVALUATE_IN,
    TINY_BERT,
    TINY_MODEL,
    WorkerProcess,
    tiny_settings,
)

STARTS = (np.array([0.5, 0.5], np.float32), np.array([-2.0, 4.0], np.float32))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a task that every process can import."""
    name = write_line(tmp_path, name="shared_line")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tiny_settings(model=task_config(name, {}), task=name, data="64", batch=6)


def of_one_process(settings: dict[str, Any]) -> list[tuple[float, list[float]]]:
    """Loss and delta of a round from each start, without a group."""
    session = TrainingSession(SessionConfig.from_json(settings))
    rounds = []
    for number, start in enumerate(STARTS, 1):
        delta = torch.empty(2)
        session.rebase(torch.from_numpy(start))
        order = RoundOrder(round=number, steps=20, tokens_done=0, tokens_per_step=128)
        report = session.run_round(order, delta, before_step=lambda: None)
        rounds.append((report.loss, delta.tolist()))
    return rounds


def test_two_processes_make_the_steps_of_one_and_say_when_one_is_gone(
    settings: dict[str, Any],
) -> None:
    worker = WorkerProcess(2)
    try:
        ready = worker.configure({**settings, "processes": 2})
        assert ready["event"] == "ready" and ready["step_tokens"] == 6, ready
        rounds = []
        for number, start in enumerate(STARTS, 1):
            worker.rebase(start)
            worker.order(number, steps=20)
            event = worker.event()
            assert event["tokens"] == 20 * 6
            rounds.append((event["loss"], worker.delta(number).tolist()))
        for (loss, delta), (loss_of_one, delta_of_one) in zip(
            rounds, of_one_process(settings), strict=True
        ):
            assert loss == pytest.approx(loss_of_one, rel=1e-5)
            assert delta == pytest.approx(delta_of_one, abs=1e-6)
            assert max(map(abs, delta)) > 0.01
        worker.slots[EVALUATE_IN] = [3, -1]
        worker.send("evaluate", tag="alone")
        assert worker.event()["measured"]["loss"] == pytest.approx(0, abs=1e-9)

        (other,) = psutil.Process(worker.process.pid).children()
        worker.order(3, steps=10**7)
        other.kill()
        assert worker.event() == {
            "event": "error",
            "message": "process 1 of the 2 that train here has ended: it was ended by signal "
            "SIGKILL",
        }
        assert worker.process.wait(timeout=10) == 1
    finally:
        worker.close()


def test_no_process_outlives_the_one_that_started_it(settings: dict[str, Any]) -> None:
    worker = WorkerProcess(2)
    try:
        assert worker.configure({**settings, "processes": 2})["event"] == "ready"
        (other,) = psutil.Process(worker.process.pid).children()
        handle = os.pidfd_open(other.pid)
        worker.process.kill()
        assert select.select([handle], [], [], 30)[0], "a rank outlived rank 0"
        os.close(handle)
    finally:
        worker.close()


@pytest.mark.parametrize(
    "config", [TINY_MODEL, {**TINY_BERT, "hidden_dropout_prob": 0.0}], ids=["causal", "masked"]
)
def test_the_mean_of_the_shares_is_the_loss(config: dict[str, Any]) -> None:
    model = FlatModel(build_model(config, seed=0))
    model.module.eval()
    text = load("builtin:0/64", ByteTokenizer())
    windows = text.batch(seed=1, round=1, step=1, batch=6, sequence=32)

    def masks() -> np.random.Generator:
        return np.random.default_rng(5)

    with torch.no_grad():
        whole = float(model.loss(windows, masks()))
        shares = [float(model.share_of_loss(windows, masks(), rank, 3)) for rank in range(3)]
    assert sum(shares) / 3 == pytest.approx(whole, rel=1e-5)
    assert len(set(shares)) == 3


def test_the_parts_of_a_batch_of_examples_are_the_batch(settings: dict[str, Any]) -> None:
    source: Any = read_material(SessionConfig.from_json(settings)).source
    parts = [
        TrainingSession(SessionConfig.from_json({**settings, "processes": 3}), rank=rank)
        for rank in range(3)
    ]
    where = {"seed": 1, "round": 2, "step": 3, "batch": 6, "sequence": 1}
    whole = source.batch(**where)[0].flatten().tolist()
    found = [part._source.batch(**where)[0].flatten().tolist() for part in parts]
    assert [found[number % 3][number // 3] for number in range(6)] == whole


def test_a_batch_that_cannot_be_shared_equally_is_refused() -> None:
    with pytest.raises(TrainingError, match="batch of 4 cannot be shared equally by 3 processes"):
        SessionConfig.from_json(tiny_settings(processes=3))


def test_ranks_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device_of_rank(name, 1) for name in ("auto", "cuda", "cuda:2", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:3",
        "cpu",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_rank("auto", 1) == "cpu"
