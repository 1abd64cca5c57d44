"""A mesh that trains a user's own module: the example's digits, from founding to accuracy."""

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.node.cli import main
from shoal.node.config import load_settings
from shoal.node.daemon import worker_configuration
from shoal.node.errors import PeerError, UserError
from shoal.node.genesis import Genesis, load_genesis, parse_document
from shoal.node.local_model import continue_text
from shoal.node.ports import free_ports
from shoal.node.provision import make_mesh
from shoal.node.trainer import Evaluated
from shoal.node.verify import verify_checkpoint
from shoal.training.session import RoundOrder, SessionConfig, TrainingSession
from tests.node.mesh import MadeUpTraining, RunningNode, running, until_rebuilt
from tests.training.example_tasks import DIGITS, DIGITS_TASK, offer

HEIGHTS = 5
STEPS = 10
# A round's steps are made in the event loop: what waits for it must not be in a hurry.
PATIENT: dict[str, Any] = {
    "consensus__base_timeout_s": 10.0,
    "consensus__candidate_timeout_s": 10.0,
}
PRESET = f"""
[mesh]
local_steps = {STEPS}
rounds_per_checkpoint = 4
learning_rate = 5e-3
warmup_tokens = 0
budget = 1.0

[train]
batch = 32
eval_batches = 12
"""


@pytest.fixture(autouse=True)
def _digits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(DIGITS)
    # As in tests/training: two threads would wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class OwnSteps(MadeUpTraining):
    """The training process, but in this one: steps are made as soon as they are ordered."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.session = TrainingSession(SessionConfig.from_json(configuration))
        super().__init__(self.session.parameters, 0)
        self.ready["step_tokens"] = self.session.step_tokens
        self._done: deque[int] = deque(maxlen=2)

    def order_round(self, number: int, *, steps: int, **further: Any) -> None:
        super().order_round(number, steps=steps, **further)
        order = RoundOrder(round=number, steps=steps, tokens_done=0, tokens_per_step=128)
        self.session.run_round(order, self.delta_slot(number), before_step=lambda: None)
        self._done.append(number)

    def rebase(self, number: int) -> None:
        newer = [self.delta_slot(done) for done in self._done if done > number]
        self.session.rebase(self._slots[0], newer)

    async def evaluate(self, tag: str) -> Evaluated:
        return Evaluated(self.session.evaluate(self._slots[3]), 0.0)


def genesis_of(node: Path) -> Genesis:
    return load_genesis(node / "genesis")[0]


def found(
    directory: Path, *, task: str = DIGITS_TASK, nodes: int = 4, **further: Any
) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "preset.toml").write_text(PRESET)
    given = {"model": None, "preset": directory / "preset.toml", "data": "builtin", **further}
    return make_mesh(
        directory / "mesh",
        task=task,
        nodes=nodes,
        host="127.0.0.1",
        port=free_ports(1)[0],
        seed=0,
        flags={},
        **given,
    ).directories


def test_four_nodes_learn_to_read_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = found(tmp_path)
    genesis = genesis_of(directories[2])
    configurations = {
        directory: worker_configuration(load_settings(directory), genesis)
        for directory in directories
    }
    trainings = {directory: OwnSteps(each) for directory, each in configurations.items()}

    def own_steps(node: RunningNode, parameters: int, seed: int) -> OwnSteps:
        return trainings[node.directory]

    monkeypatch.setattr(RunningNode, "make_training", own_steps)

    async def train() -> int:
        async with running(directories, rounds=0, **PATIENT) as nodes:
            return await until_rebuilt(nodes, HEIGHTS, seconds=240)

    height = asyncio.run(train())
    checkpoint = directories[2] / "checkpoints" / str(height)
    verify_checkpoint(checkpoint, genesis.mesh_id)
    module = shoal.load(directories[2], DIGITS_TASK)
    opened = torch.cat([each.detach().flatten() for each in module.parameters()])
    together = trainings[directories[0]].session.evaluate(opened)["accuracy"]
    assert together > 0.8
    assert json.loads((checkpoint / "config.json").read_text())["shoal_task"] == {
        "name": DIGITS_TASK,
        "version": "1",
    }
    with pytest.raises(UserError, match=r'of the task "shoal_digits:Digits", which makes no text'):
        continue_text(checkpoint, "a", base=None, tokens=1, temperature=0.0, seed=0)
    with pytest.raises(ValueError, match="if you have it and trust it"):
        shoal.load(checkpoint)


def test_founders_of_an_installed_task_need_no_further_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path / "site", "digits", DIGITS_TASK)
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "small.json").write_text('{"channels": 2}')
    node, _ = found(tmp_path, task="digits", nodes=2, model=tmp_path / "small.json")
    genesis = genesis_of(node)
    assert genesis.task is not None and (genesis.task.name, genesis.task.version) == ("digits", "1")
    assert genesis.model_config["config"] == {"channels": 2}
    assert genesis.founders[0].shard_tokens + genesis.founders[1].shard_tokens == 1437
    assert genesis.parameters.muon_scale == 0
    settings = load_settings(node)
    assert settings.train.task == "" and settings.train.data == "builtin:0/2"
    session = TrainingSession(SessionConfig.from_json({**worker_configuration(settings, genesis)}))
    assert session.parameters == genesis.schema.layout.total


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "digits"], 'the task "digits" is not installed here; install its package'),
        (["--task", "nowhere:Digits"], "cannot be imported (No module named 'nowhere')"),
        (["--task", DIGITS_TASK, "--model", "."], "a task has a module of its own"),
        (["--task", DIGITS_TASK, "--data", "builtin:4/4"], "has I from 0 to N-1"),
        (["--task", DIGITS_TASK, "--data", "nowhere.csv"], "nowhere.csv not found"),
    ],
)
def test_a_wrong_task_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["init", str(tmp_path / "mesh"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "mesh").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"shoal_task": {"name": "a b", "version": "1"}, "config": {}}},
        {"model": {"shoal_task": {"name": "digits", "version": "1"}}},
        {"tokenizer": {"tokenizer.json": "ab" * 32}},
    ],
)
def test_a_genesis_with_a_strange_task_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    node, *_ = found(tmp_path, nodes=1)
    content = json.loads(genesis_of(node).document)
    with pytest.raises(PeerError, match=r"genesis-(malformed|task)"):
        parse_document(json.dumps({**content, **change}).encode())


def test_asking_for_the_version_loads_no_torch() -> None:
    code = "import sys, shoal; shoal.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
