"""A user's own module, data and loss: where they are found, what is refused, that they learn."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.training.errors import TrainingError
from shoal.training.installed_tasks import installed_task, task_config, version_of
from shoal.training.session import RoundOrder, SessionConfig, TrainingSession, read_material
from shoal.training.task_name import TaskName
from shoal.training.task_training import TaskModel, moved
from tests.training.example_tasks import DIGITS, DIGITS_TASK, offer, write_line
from tests.training.worker_process import EVALUATE_IN, WorkerProcess, tiny_settings


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to import from; what was imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def settings(task: str, **changes: Any) -> dict[str, Any]:
    model = task_config(task, {})
    quick = {"data": "64", "batch": 16, "learning_rate": 0.1, "weight_decay": 0.0}
    return tiny_settings(**{"model": model, "task": task, **quick, **changes})


# --- what a node runs -----------------------------------------------------------------------------


def test_a_package_offers_a_task_by_name(place: Path) -> None:
    offer(place, "line", write_line(place))
    config = task_config("line", {"wide": 3})
    assert config == {"shoal_task": {"name": "line", "version": "2"}, "config": {"wide": 3}}
    assert installed_task(config).config == {"wide": 3}
    with pytest.raises(
        TrainingError, match=r'"lines" is not installed here.*installed are: .*line'
    ):
        task_config("lines", {})
    offer(place, "line", "other:Line", package="other_package")
    with pytest.raises(TrainingError, match=r"several packages \(line:Line, other:Line\)"):
        installed_task(config)


def test_a_peers_word_alone_imports_nothing(place: Path) -> None:
    config = task_config(write_line(place), {})
    del sys.modules["line"]
    for named in (None, "another:Line"):
        with pytest.raises(TrainingError, match="if you have it and trust it, say so: task = "):
            installed_task(config, named)
        assert "line" not in sys.modules
    assert type(installed_task(config, "line:Line")).__name__ == "Line"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere:Line",
            r"cannot be imported \(No module named 'nowhere'\); .* PYTHONPATH",
        ),
        ("json:Line", "cannot be imported .*no attribute 'Line'"),
        ("json:JSONDecoder", '"json:JSONDecoder" is no task: it must be a subclass of shoal.Task'),
        ("broken:Line", '"broken:Line": ZeroDivisionError: division by zero'),
    ],
)
def test_what_is_no_task_is_one_line(place: Path, name: str, message: str) -> None:
    (place / "broken.py").write_text("1 / 0\n")
    with pytest.raises(TrainingError, match=message) as caught:
        task_config(name, {})
    assert "\n" not in str(caught.value)


def test_another_version_is_another_task(place: Path) -> None:
    config = task_config(write_line(place, name="now", version="1"), {})
    write_line(place, name="then", version="2")
    config["shoal_task"]["name"] = "then:Line"
    with pytest.raises(TrainingError, match=r'version 1 of the task "then:Line", but version 2 is'):
        installed_task(config, "then:Line")


def test_without_a_version_the_source_is_what_is_compared(place: Path) -> None:
    names = [
        write_line(place, name=name, version="", module=f"torch.nn.Linear(1, 1, bias={bias})")
        for name, bias in (("a", True), ("b", True), ("c", False))
    ]
    one, same, other = (task_config(name, {})["shoal_task"]["version"] for name in names)
    assert one == same != other and one.startswith("sha256-")


@pytest.mark.parametrize(
    "content",
    [
        None,
        {"name": "line"},
        {"name": "../line", "version": "1"},
        {"name": "a:b:c", "version": "1"},
        {"name": "line", "version": "\x1b[2J"},
        {"name": "line", "version": 1},
    ],
)
def test_a_strange_name_is_refused(content: object) -> None:
    with pytest.raises(TrainingError):
        TaskName.of({"shoal_task": content, "config": {}})
    with pytest.raises(TrainingError, match="has a config"):
        TaskName.of({"shoal_task": {"name": "line", "version": "1"}})


# --- what a mesh can share ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("torch.nn.BatchNorm1d(1)", "holds running_mean, which is not trained.*GroupNorm"),
        ("torch.nn.Linear(1, 1).requires_grad_(False)", "holds weight, which is not trained"),
        ("torch.nn.ReLU()", "0 parameters to train"),
        ("3", r"build\(\) must return a torch.nn.Module"),
        ("1 / 0", 'the task "Line": ZeroDivisionError: division by zero'),
    ],
)
def test_a_module_that_members_would_not_share_is_refused(
    place: Path, module: str, message: str
) -> None:
    task = installed_task(task_config(write_line(place, module=module), {}), "line:Line")
    with pytest.raises(TrainingError, match=message):
        TaskModel(task, seed=0)


def test_the_seed_decides_the_weights_and_nobody_elses_chance(place: Path) -> None:
    task = installed_task(task_config(write_line(place), {}), "line:Line")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (TaskModel(task, seed).flat for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


def test_batches_follow_from_the_cursor_alone(place: Path) -> None:
    config = SessionConfig.from_json(settings(write_line(place)))
    source = read_material(config).source

    def at(seed: int, round: int, step: int) -> torch.Tensor:
        batch = source.batch(seed=seed, round=round, step=step, batch=8, sequence=1)
        return torch.cat(batch, 1)

    first = at(1, 2, 3)
    assert first.shape == (8, 2)
    for other in (at(2, 2, 3), at(1, 3, 3), at(1, 2, 4)):
        assert not torch.equal(other, first)
    assert torch.equal(at(1, 2, 3), first)


def test_a_session_learns_what_the_task_asks_for(place: Path) -> None:
    session = TrainingSession(SessionConfig.from_json(settings(write_line(place), eval_batches=3)))
    session.rebase(session.model.flat.clone())
    order = RoundOrder(round=1, steps=200, tokens_done=0, tokens_per_step=16)
    report = session.run_round(order, torch.empty(session.parameters), before_step=lambda: None)
    assert report.tokens == 200 * 16 and session.step_tokens == 16
    assert session.model.flat.tolist() == pytest.approx([3.0, -1.0], abs=0.02)
    assert session.evaluate(session.model.flat.clone())["loss"] < 1e-3


def test_what_is_held_out_is_measured_in_equal_batches_evenly_spread(place: Path) -> None:
    name = write_line(place)
    # Batches, their size, and how many of 64 examples that are: where there are too few, equal
    # batches of fewer.
    for batches, batch, count in ((3, 16, 48), (9, 20, 60), (1, 100, 64)):
        config = settings(name, batch=batch, eval_batches=batches)
        session = TrainingSession(SessionConfig.from_json(config))
        x = torch.linspace(-1, 1, 64)[np.linspace(0, 63, count).astype(int)]
        expected = float((3 * x - 1).square().mean())
        assert session.evaluate(torch.zeros(2))["loss"] == pytest.approx(expected, rel=1e-5)


def test_data_that_the_task_cannot_read_is_one_line(place: Path) -> None:
    name = write_line(place)
    for data, message in (("many", '"Line": invalid literal for int'), ("0", "no examples")):
        with pytest.raises(TrainingError, match=message):
            read_material(SessionConfig.from_json(settings(name, data=data)))


def test_a_batch_may_be_made_of_anything_with_tensors_in_it() -> None:
    one = torch.ones(1)
    batch = moved({"a": [one, "name"], "b": (one, 3)}, torch.device("meta"))
    assert batch["a"][0].is_meta and batch["b"][0].is_meta
    assert batch["a"][1] == "name" and batch["b"][1] == 3 and isinstance(batch["b"], tuple)


# --- the process ----------------------------------------------------------------------------------


def test_the_training_process_trains_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(DIGITS), prepend=os.pathsep)
    monkeypatch.syspath_prepend(DIGITS)
    config = settings(
        DIGITS_TASK, data="builtin:0/1", batch=32, learning_rate=3e-3, eval_batches=12
    )
    first = TaskModel(installed_task(config["model"], DIGITS_TASK), seed=0).flat.numpy()
    worker = WorkerProcess(first.size)
    try:
        ready = worker.configure(config)
        assert ready["step_tokens"] == 32 and worker.shard_tokens == 1437
        worker.rebase(first)
        worker.order(1, steps=100)
        assert worker.event()["tokens"] == 3200
        accuracies = []
        for weights in (first, first - worker.delta(1)):
            worker.slots[EVALUATE_IN] = weights
            worker.send("evaluate", tag="1")
            accuracies.append(worker.event()["measured"]["accuracy"])
        assert accuracies[0] < 0.3 and accuracies[1] > 0.85
    finally:
        worker.close()


def test_the_examples_version_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DIGITS)
    assert version_of(type(installed_task(task_config(DIGITS_TASK, {}), DIGITS_TASK))) == "1"
    with pytest.raises(TrainingError, match="channels must be a whole number from 1 to 1024"):
        TaskModel(installed_task(task_config(DIGITS_TASK, {"channels": 0}), DIGITS_TASK), seed=0)
