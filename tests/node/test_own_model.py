"""`shoal own`: what a node knows itself, as a model of its own."""

import asyncio
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.cli import app
from shoal.node.errors import DamagedError, UserError
from shoal.node.own_mean import OWN, OwnMean
from shoal.node.own_model import own_model
from tests.node.certified import SCHEMA, TOKENIZER, CertifiedMesh
from tests.node.mesh import found_mesh, running, until


def weights(seed: int) -> torch.Tensor:
    return torch.randn(SCHEMA.layout.total, generator=torch.Generator().manual_seed(seed))


def kept(directory: Path, *, rounds: int = 3, given: int = 5) -> OwnMean:
    """A mean of so many weights, written after the last."""
    mean = OwnMean(directory, SCHEMA, rounds)
    for seed in range(given):
        mean.add(weights(seed), torch.zeros(()))
    assert mean.weights is not None
    mean.write(given, mean.weights)
    return mean


def test_the_mean_is_that_of_all_until_there_are_enough_and_then_moves(tmp_path: Path) -> None:
    mean = OwnMean(tmp_path, SCHEMA, 3)
    expected = torch.zeros(SCHEMA.layout.total)
    for seed in range(6):
        mean.add(2 * weights(seed), weights(seed))
        expected += (weights(seed) - expected) / min(seed + 1, 3)
        assert mean.weights is not None
        torch.testing.assert_close(mean.weights, expected)
        if seed < 3:
            plain = torch.stack([weights(each) for each in range(seed + 1)]).mean(0)
            torch.testing.assert_close(mean.weights, plain)


def test_what_is_given_stays_the_givers(tmp_path: Path) -> None:
    mean, given = OwnMean(tmp_path, SCHEMA, 3), weights(0)
    mean.add(given, torch.zeros(()))
    given.zero_()
    assert mean.weights is not None and torch.equal(mean.weights, weights(0))


def test_a_model_of_its_own_opens_like_a_checkpoint(tmp_path: Path) -> None:
    node, target = tmp_path / "node", tmp_path / "deep" / "own"
    checkpoint = CertifiedMesh("ABCD", height=5).write(node)
    mean = kept(node)
    facts = own_model(node, target)

    assert facts == {"mesh": CertifiedMesh("ABCD").mesh_id.hex(), "round": 5, "rounds": 3}
    assert json.loads((target / "own.json").read_text()) == facts
    assert newest_checkpoint(target) == target
    tensors = load_file(target / "model.safetensors")
    assert mean.weights is not None
    in_order = [tensors[each.name] for each in SCHEMA.tensors]
    assert [tuple(tensor.shape) for tensor in in_order] == [each.shape for each in SCHEMA.tensors]
    assert torch.equal(torch.cat([tensor.flatten() for tensor in in_order]), mean.weights)
    for name in ("config.json", *TOKENIZER):
        assert (target / name).read_bytes() == (checkpoint / name).read_bytes()


def test_the_command_says_what_it_made_and_what_is_missing(tmp_path: Path) -> None:
    node, target = tmp_path / "node", tmp_path / "own"
    CertifiedMesh("ABCD", height=5).write(node)
    refused = CliRunner().invoke(app, ["own", str(node), str(target)])
    assert isinstance(refused.exception, UserError)
    kept(node)
    made = CliRunner().invoke(app, ["own", str(node), str(target), "--json"])
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert said == {"directory": str(target), **json.loads((target / "own.json").read_text())}


def test_what_is_missing_is_said_and_nothing_is_left_behind(tmp_path: Path) -> None:
    node, target = tmp_path / "node", tmp_path / "own"
    node.mkdir()
    with pytest.raises(UserError, match=r"set train\.own_mean_rounds"):
        own_model(node, target)
    kept(node)
    with pytest.raises(UserError, match="wait for its first"):
        own_model(node, target)
    CertifiedMesh("ABCD", height=5).write(node)
    (node / OWN).write_bytes(b"no weights")
    with pytest.raises(DamagedError, match="cannot be read"):
        own_model(node, target)
    assert [path.name for path in tmp_path.iterdir()] == ["node"]
    target.mkdir()
    with pytest.raises(UserError, match="is there already"):
        own_model(node, target)


def test_a_full_disk_costs_the_file_and_not_the_node(tmp_path: Path) -> None:
    whole = kept(tmp_path)
    before = (tmp_path / OWN).read_bytes()
    (tmp_path / OWN).with_suffix(".partial").mkdir()
    whole.add(weights(9), torch.zeros(()))
    assert whole.weights is not None
    whole.write(9, whole.weights)
    assert (tmp_path / OWN).read_bytes() == before


def test_a_node_keeps_its_mean_while_it_trains(tmp_path: Path) -> None:
    async def story() -> None:
        (directory,) = found_mesh(tmp_path, nodes=1)
        snapshots = directory / "snapshots"
        train = {"train__own_mean_rounds": 2, "train__snapshot_rounds": [1, 2, 3]}
        async with running([directory], rounds=3, **train) as nodes:
            await until(lambda: nodes[0].node.state.facts.state == "finished", nodes)

        def read(round: int, kind: str) -> torch.Tensor:
            return torch.from_numpy(np.fromfile(snapshots / f"{round}-{kind}.f32", dtype="<f4"))

        mean = (read(1, "own") + read(2, "own")) / 2
        torch.testing.assert_close(read(2, "mean"), mean)
        torch.testing.assert_close(read(3, "mean"), (mean + read(3, "own")) / 2)
        last = torch.cat([each.flatten() for each in load_file(directory / OWN).values()])
        assert math.isclose(float(last.norm()), float(read(3, "mean").norm()), rel_tol=1e-6)

    asyncio.run(story())
