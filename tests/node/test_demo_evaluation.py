"""The comparison must be fair: a shard alone differs from its node in nothing but the mesh."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.node import demo_evaluation
from shoal.node.config import document_settings
from shoal.node.demo_evaluation import evaluate, evaluation_progress
from shoal.node.errors import UserError

PARAMETERS = SimpleNamespace(
    local_steps=8, learning_rate=0.002, muon_scale=4.0, warmup_tokens=100, schedule_tokens=1000
)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    def prepare(node: Path, scratch: Path) -> tuple[Any, Path]:
        scratch.mkdir(exist_ok=True)
        return SimpleNamespace(parameters=PARAMETERS, model_config={"a": 1}), scratch / "start"

    monkeypatch.setattr(demo_evaluation, "_prepare", prepare)
    made = [tmp_path / f"node{index}" for index in range(4)]
    for index, node in enumerate(made):
        node.mkdir()
        values = {"train.data": f"builtin:{index}/4", "train.seed": 100 + index, "train.batch": 4}
        (node / "node.toml").write_text(document_settings(values))
    return made


def test_each_shard_alone_gets_its_nodes_text_seed_steps_and_learning_rates(
    nodes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[str, Mapping[str, Any]] = {}

    async def run(name: str, settings: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
        runs[name] = settings
        return {"loss": 2.0 + len(runs) / 100, "text": "goes on"}

    monkeypatch.setattr(demo_evaluation, "_run", run)
    losses, sample = asyncio.run(
        evaluate(nodes=nodes, checkpoint=tmp_path, scratch=tmp_path / "scratch", rounds=3)
    )
    assert runs.keys() == {"mesh", "start", "sample", "solo0", "solo1", "solo2", "solo3"}
    for index in range(4):
        alone = runs[f"solo{index}"]
        assert alone["data"] == f"builtin:{index}/4"
        assert alone["seed"] == 100 + index
        assert alone["steps"] == 24
        assert alone["tokens_per_step"] == 4 * 4 * 128, "the mesh's schedule"
        assert alone["weights"] == runs["start"]["weights"]
        assert alone["muon_scale"] == 4.0, "the mesh's optimiser"
    assert "steps" not in runs["mesh"]
    assert runs["mesh"]["weights"] == str(tmp_path / "model.safetensors")
    sources = [f"builtin:{index}/4" for index in range(4)]
    assert all(settings["evaluate"] == sources for settings in runs.values())
    assert len({settings["eval_batches"] for settings in runs.values()}) == 1
    assert len({losses.mesh, losses.start, *losses.solo}) == 6
    assert sample.endswith("goes on")


def test_a_comparison_that_fails_says_why_in_the_programs_own_words(
    nodes: list[Path], tmp_path: Path
) -> None:
    # There is no tokenizer beside the checkpoint, which the real program finds out.
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        asyncio.run(
            evaluate(nodes=nodes, checkpoint=tmp_path, scratch=tmp_path / "scratch", rounds=1)
        )


def test_progress_is_what_the_programs_said_last(tmp_path: Path) -> None:
    assert evaluation_progress(tmp_path / "missing") == "starting"
    (tmp_path / "solo0.log").write_text("step 64/256  loss 2.5\nstep 128/256  loss 2.1\n")
    (tmp_path / "solo1.log").write_text("some warning\n")
    assert evaluation_progress(tmp_path) == "steps 128 0 of 256"
