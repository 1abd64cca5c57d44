"""Which checkpoint is served: the newest one that proves itself, each judged once."""

import shutil
from pathlib import Path

import pytest
import torch

from shoal.node.average import average
from shoal.node.errors import UserError
from shoal.node.local_model import open_model
from shoal.node.verify_formats import Refused
from tests.node.served import certify, make_follower


def test_each_newer_checkpoint_is_opened_once(tmp_path: Path) -> None:
    follower = make_follower(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        follower.look()
    certify(tmp_path, 5)
    found = follower.look()
    assert found is not None and found.origin.height == 5
    assert follower.look() is None
    newer = certify(tmp_path, 6)
    found = follower.look()
    assert found is not None and found.origin.height == 6
    # What was served stays better than what is older.
    shutil.rmtree(newer)
    assert follower.look() is None


def test_the_mean_of_the_newest_is_what_shoal_average_makes_of_them(tmp_path: Path) -> None:
    node = tmp_path / "node"
    follower = make_follower(node, average=2)
    certify(node, 5)
    found = follower.look()
    assert found is not None and found.origin.averaged == (), "one is all there is"
    for height in (6, 7):
        certify(node, height)
    found = follower.look()
    assert found is not None and found.origin.averaged == (6, 7)
    assert found.origin.height == 7
    assert found.origin.fingerprint.endswith("-mean2")
    assert found.origin.to_json()["averaged"] == [6, 7]
    average(node, tmp_path / "mean", last=2)
    expected, _ = open_model(tmp_path / "mean")
    weights = torch.cat([each.detach().flatten() for each in found.model._module.parameters()])
    assert torch.equal(weights, expected.flat)


def test_a_mean_of_a_part_that_does_not_prove_itself_is_refused(tmp_path: Path) -> None:
    weights = certify(tmp_path, 5) / "model.safetensors"
    certify(tmp_path, 6)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Refused, match="weights"):
        make_follower(tmp_path, average=2).look()
    assert make_follower(tmp_path).look() is not None, "alone the newest is well"


def test_what_does_not_prove_itself_is_refused_until_it_changes(tmp_path: Path) -> None:
    weights = certify(tmp_path, 5) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    follower = make_follower(tmp_path)
    with pytest.raises(Refused, match="weights"):
        follower.look()
    assert follower.look() is None
    weights.write_bytes(whole)
    assert follower.look() is not None


def test_only_checkpoints_of_one_mesh_follow_each_other(tmp_path: Path) -> None:
    follower = make_follower(tmp_path)
    certify(tmp_path, 5)
    assert follower.look() is not None
    certify(tmp_path, 6, name="another mesh")
    with pytest.raises(Refused, match="wrong-mesh"):
        follower.look()
    with pytest.raises(Refused, match="wrong-mesh"):
        make_follower(tmp_path, bytes(32)).look()
    node = tmp_path / "genesis"
    node.mkdir()
    shutil.copy(tmp_path / "checkpoints/5/genesis.json", node)
    with pytest.raises(Refused, match="wrong-mesh"):
        make_follower(tmp_path).look()
