"""`shoal average`: certified checkpoints in, one model out, and nothing that is not proved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shoal.gossip.anchor import Anchor
from shoal.node.average import AVERAGE, average, mean
from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.errors import UserError
from shoal.node.verify_formats import Refused
from tests.node.certified import SCHEMA, TOKENIZER, CertifiedMesh


def mesh_at(height: int, *, name: str = "the mesh") -> CertifiedMesh:
    """The same mesh some rounds later: another anchor under the same genesis."""
    values = np.random.default_rng(height).integers(-(2**30), 2**30, SCHEMA.layout.total)
    anchor = Anchor(SCHEMA, torch.from_numpy(values.astype(np.int32)))
    return CertifiedMesh("ABCD", height=height, anchor=anchor, name=name)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's directory with three whole checkpoints."""
    directory = tmp_path_factory.mktemp("node")
    for height in (5, 6, 7):
        mesh_at(height).write(directory)
    return directory


def test_the_newest_become_one_model_that_opens_like_a_checkpoint(
    node: Path, tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "averaged"
    proofs = average(node, target, last=2)

    assert [proof.record.height for proof in proofs] == [6, 7]
    weights = load_file(target / "model.safetensors")
    parts = [load_file(node / "checkpoints" / str(each) / "model.safetensors") for each in (6, 7)]
    assert weights.keys() == parts[0].keys() == {tensor.name for tensor in SCHEMA.tensors}
    for name, value in weights.items():
        expected = (parts[0][name].double() + parts[1][name].double()) / 2
        assert value.dtype == torch.float32
        assert torch.equal(value, expected.float())
    assert newest_checkpoint(target) == target
    for name in ("config.json", "genesis.json", *TOKENIZER):
        assert (target / name).read_bytes() == (proofs[-1].directory / name).read_bytes()
    said = json.loads((target / AVERAGE).read_text())
    assert said["mesh"] == mesh_at(7).mesh_id.hex()
    assert [part["root"] for part in said["parts"]] == [
        mesh_at(height).anchor.root().hex() for height in (6, 7)
    ]


def test_the_same_parts_give_the_same_bytes_everywhere(node: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(node, tmp_path / "elsewhere"))
    for directory, target in ((node, "one"), (elsewhere, "other")):
        average(directory, tmp_path / target, last=3)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_node_that_keeps_fewer_gives_the_mean_of_what_it_has(node: Path, tmp_path: Path) -> None:
    assert len(average(node, tmp_path / "averaged", last=1000)) == 3


def test_a_part_that_is_not_proved_spoils_the_whole(node: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(node, tmp_path / "spoiled"))
    path = spoiled / "checkpoints" / "6" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refused):
        average(spoiled, tmp_path / "averaged", last=3)
    assert [each.name for each in tmp_path.iterdir()] == ["spoiled"], "nothing is left behind"


def test_checkpoints_of_two_meshes_are_not_mixed(tmp_path: Path) -> None:
    mesh_at(5).write(tmp_path / "node")
    mesh_at(6, name="another").write(tmp_path / "node")
    with pytest.raises(Refused) as caught:
        average(tmp_path / "node", tmp_path / "averaged", last=2)
    assert caught.value.reason == "wrong-mesh"


@pytest.mark.parametrize("heights", [(), (5,)])
def test_a_mean_needs_two(heights: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    for height in heights:
        mesh_at(height).write(tmp_path / "node")
    with pytest.raises(UserError, match="a mean needs two"):
        average(tmp_path / "node", tmp_path / "averaged", last=2)


def test_what_is_there_already_stays(node: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there already"):
        average(node, tmp_path, last=2)


def test_large_numbers_of_small_steps_are_not_lost(tmp_path: Path) -> None:
    """The sum is made in float64: a thousand parts round once."""
    from safetensors.torch import save_file

    files = [tmp_path / f"{number}.safetensors" for number in range(1000)]
    for file in files:
        save_file({"w": torch.tensor([16777216.0, 0.1])}, file)
    assert torch.equal(mean(files)["w"], torch.tensor([16777216.0, 0.1]))
