"""Making a mesh or joining one: what is refused before anything is written or anybody asked."""

import json
from pathlib import Path

import pytest

from shoal.node.config import load_settings
from shoal.node.errors import UnreachableError, UserError
from shoal.node.invitations import as_line
from shoal.node.parameters import MeshParameters
from shoal.node.ports import free_address, free_ports
from shoal.node.presets import Preset
from shoal.node.provision import (
    join_and_configure,
    make_mesh,
    mesh_parameters,
    read_model_config,
)
from tests.node.inviting import invitation_of_nobody


def join(directory: Path, address: str | None = "127.0.0.1:1", **changes: object) -> None:
    arguments: dict[str, object] = {
        "token": as_line(invitation_of_nobody()),
        "mesh_id": None,
        "data": "builtin:0/1",
        "listen": None,
        "advertise": "",
        "trust_id": None,
        "first_use": False,
        "preset": None,
        "flags": {},
    }
    join_and_configure(address, directory, **{**arguments, **changes})  # type: ignore[arg-type]


def make(directory: Path, **changes: object) -> None:
    arguments: dict[str, object] = {
        "nodes": 2,
        "host": "127.0.0.1",
        "port": 7400,
        "data": "builtin",
        "model": None,
        "seed": 0,
        "preset": None,
        "flags": {},
    }
    make_mesh(directory, **{**arguments, **changes})  # type: ignore[arg-type]


def test_a_mesh_is_never_made_over_another(tmp_path: Path) -> None:
    (tmp_path / "node1").mkdir()
    (tmp_path / "node1" / "identity.key").touch()
    with pytest.raises(UserError, match="holds a mesh already"):
        make(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["node1"]
    assert [entry.name for entry in (tmp_path / "node1").iterdir()] == ["identity.key"]


def test_empty_directories_may_wait_for_their_nodes(tmp_path: Path) -> None:
    # In containers they are the mount points of volumes.
    (tmp_path / "node0").mkdir()
    make(tmp_path)
    for name in ("node0", "node1"):
        assert (tmp_path / name / "identity.key").exists()


def test_each_node_may_have_its_own_text(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"text{index}.txt").write_text(f"Shard {index}.\n" * 200)
    make(tmp_path / "mesh", data=str(tmp_path / "text{index}.txt"))
    for index in range(2):
        settings = load_settings(tmp_path / "mesh" / f"node{index}")
        assert settings.train.data == str(tmp_path / f"text{index}.txt")


def test_ports_must_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="65536"):
        make(tmp_path, port=65535)


def test_a_wrong_setting_is_refused_before_a_mesh_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean train\.batch"):
        make(tmp_path / "mesh", flags={"train.bach": 4})
    assert not (tmp_path / "mesh").exists()


def test_a_mesh_has_its_preset_and_its_settings_in_every_node(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text("[mesh]\nlocal_steps = 3\n[gossip]\ndegree = 6\n")
    make(tmp_path / "mesh", preset=preset, port=7410, flags={"train.batch": 2})
    genesis = []
    for index in range(2):
        node = tmp_path / "mesh" / f"node{index}"
        settings = load_settings(node)
        assert settings.node.listen == f"127.0.0.1:{7410 + index}"
        assert (settings.gossip.degree, settings.train.batch) == (6, 2)
        assert settings.train.data == f"builtin:{index}/2"
        genesis.append((node / "genesis" / "genesis.json").read_bytes())
    assert genesis[0] == genesis[1]
    assert json.loads(genesis[0])["parameters"]["local_steps"] == 3


def test_a_node_does_not_join_twice(tmp_path: Path) -> None:
    (tmp_path / "node.toml").touch()
    with pytest.raises(UserError, match=f"shoal run {tmp_path}"):
        join(tmp_path, token=None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"address": "nowhere"}, "not host:port"),
        ({"listen": "127.0.0.1:65500"}, "no port 100 above 65500"),
        ({"flags": {"node.inspect": "0.0.0.0:7600"}}, "not encrypted"),
        ({"trust_id": "ab"}, "64 hexadecimal digits"),
        ({"trust_id": "ab" * 32, "first_use": True}, "not both"),
        ({"trust_id": "ab" * 32, "address": None}, "say where that member answers"),
        ({"token": None}, "say who invites this node"),
        ({"token": as_line(invitation_of_nobody(hint="")), "address": None}, "names no address"),
        ({"token": as_line(invitation_of_nobody(hint="a,b:1")), "address": None}, "no address"),
        ({"token": "shoal2.abc"}, "begins with shoal1"),
        ({"token": as_line(invitation_of_nobody(expires_ms=1))}, "was good until 1970-01-01"),
        ({"advertise": "me"}, "not host:port"),
        ({"flags": {"train.bach": 4}}, "did you mean train.batch?"),
        ({"mesh_id": "abc"}, "wrong mesh: the invitation is to 0000"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        join(tmp_path / "fifth", **changes)  # type: ignore[arg-type]
    assert not (tmp_path / "fifth").exists()


def test_nobody_at_the_address_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="no node answers"):
        join(tmp_path / "fifth")
    assert not (tmp_path / "fifth").exists()


def test_a_presets_mesh_table_becomes_the_meshs_parameters() -> None:
    parameters = mesh_parameters(Preset(mesh={"local_steps": 32}, settings={}), "wan.toml")
    assert parameters == MeshParameters(local_steps=32)


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        ({"local_step": 3}, "did you mean local_steps?"),
        ({"local_steps": -1}, "local_steps must be"),
    ],
)
def test_a_wrong_mesh_table_is_one_line(mesh: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        mesh_parameters(Preset(mesh=mesh, settings={}), "wan.toml")
    assert "wan.toml" in str(caught.value)
    assert expected in str(caught.value)


def test_a_models_configuration_is_a_json_object(tmp_path: Path) -> None:
    assert read_model_config(None) is None
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama"}))
    assert read_model_config(path) == {"model_type": "llama"}
    for text, expected in (("[1]", "not a JSON object"), ("{", "not valid JSON")):
        path.write_text(text)
        with pytest.raises(UserError, match=expected):
            read_model_config(path)
    with pytest.raises(UserError, match="No such file"):
        read_model_config(tmp_path / "missing.json")


def test_free_ports_are_different_and_can_be_used() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert free_address().startswith("127.0.0.1:74")
