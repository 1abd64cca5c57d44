"""A genesis comes from strangers: it is exactly what it says, or it is refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.checkpoints import OWN_NAMES
from shoal.node.errors import DamagedError, PeerError, UserError
from shoal.node.genesis import load_genesis, parse_document
from shoal.node.parameters import MeshParameters
from shoal.node.verify_formats import OURS, Refused, parse_genesis
from shoal.training.tokenizer import ByteTokenizer
from tests.node.mesh import found_mesh


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return found_mesh(tmp_path_factory.mktemp("mesh") / "mesh", nodes=4)[0]


@pytest.fixture
def document(founded: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((founded / "genesis" / "genesis.json").read_text())
    return content


def test_what_was_written_is_what_is_read(founded: Path) -> None:
    genesis, anchor, tokenizer = load_genesis(founded / "genesis")
    assert anchor.root() == genesis.anchor_root
    assert list(genesis.validators) == sorted(founder.node_id for founder in genesis.founders)
    assert set(tokenizer) == set(genesis.tokenizer_hashes)
    weights = dict(genesis.epoch_parameters().weights)
    assert sum(weights.values()) == pytest.approx(1.0)


def test_the_mesh_id_depends_on_every_byte(founded: Path) -> None:
    raw = (founded / "genesis" / "genesis.json").read_bytes()
    assert parse_document(raw).mesh_id != parse_document(raw + b"\n").mesh_id


def _with(document: dict[str, Any], *path: Any, value: Any) -> bytes:
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("format",), 99, "genesis-format"),
        (("founders",), [], "genesis-founders"),
        (("founders", 0, "shard_tokens"), 0, "genesis-founders"),
        (("founders", 0, "share_permille"), 2000, "genesis-founders"),
        (("founders", 0, "id"), "zz", "genesis-malformed"),
        (("anchor_root",), "00", "genesis-malformed"),
        (("parameters", "local_steps"), -1, "genesis-parameters"),
        (("parameters", "beta"), 2.0, "genesis-parameters"),
        (("parameters", "no_such_thing"), 1, "genesis-malformed"),
        (("tokenizer",), {"../escape": "00"}, "genesis-tokenizer"),
        (("tokenizer",), {"config.json": "00" * 32}, "genesis-tokenizer"),
        (("tokenizer",), {"Model.safetensors": "00" * 32}, "genesis-tokenizer"),
        (("tokenizer",), {"chunks": "00" * 32}, "genesis-tokenizer"),
        (("schema",), [], "bad-schema"),
    ],
)
def test_a_wrong_document_is_refused(
    document: dict[str, Any], path: tuple[Any, ...], value: Any, reason: str
) -> None:
    with pytest.raises(PeerError) as refusal:
        parse_document(_with(document, *path, value=value))
    assert refusal.value.reason in {reason, "genesis-malformed"}


@given(data=st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_no_bytes_do_worse_than_being_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        parse_document(data)


def test_a_damaged_anchor_is_said_so(founded: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(founded / "genesis", tmp_path / "genesis")
    anchor = Path(copy) / "anchor.bin"
    anchor.write_bytes(anchor.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="damaged"):
        load_genesis(Path(copy))


def test_the_default_parameters_are_allowed() -> None:
    assert MeshParameters().problems() == []


@pytest.mark.parametrize("name", sorted(OWN_NAMES))
def test_a_tokenizer_file_never_takes_the_name_of_a_checkpoints_own(
    name: str, document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"tokenizer.json": b"{}", name: b"{}"}
    monkeypatch.setattr(ByteTokenizer, "files", lambda self: files)
    with pytest.raises(UserError, match=f"{name} is a checkpoint's own file") as refusal:
        found_mesh(tmp_path / "mesh", nodes=1)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "mesh" / "node0").exists(), "no key is made for a mesh that is none"
    with pytest.raises(Refused, match="malformed-genesis"):
        parse_genesis(_with(document, "tokenizer", name, value="00" * 32))


def test_the_two_lists_of_a_checkpoints_own_names_are_one(document: dict[str, Any]) -> None:
    assert set(OURS) == OWN_NAMES
    assert parse_genesis(_with(document, "name", value="other")).tokenizer
