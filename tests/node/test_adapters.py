"""A mesh of adapters: how it is founded, what a stranger can prove, and how little it sends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.compression.residual import Residual
from shoal.gossip.parameters import genesis_parameters
from shoal.gossip.strategies.delta_log import say
from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.config import load_settings
from shoal.node.errors import DamagedError, PeerError, UserError
from shoal.node.founding import first_anchor
from shoal.node.genesis import load_genesis, parse_document
from shoal.node.local_model import continue_text
from shoal.node.provision import make_mesh
from shoal.node.verify import verify_checkpoint
from shoal.training.adapters import Lora
from shoal.training.model import default_config
from shoal.training.session import RoundOrder, SessionConfig, TrainingSession
from tests.node.certified import CertifiedMesh, refusal
from tests.training.base_models import ADAPTERS, adapters_of, write_base
from tests.training.worker_process import TINY_BERT, tiny_settings

SHA256 = "ab" * 32
LORA = Lora.from_json({**ADAPTERS, "base": "org/base", "base_files": {"model.safetensors": SHA256}})
PRESET = '[lora]\nrank = 2\nalpha = 4\ntarget_modules = ["q_proj"]\n'


@pytest.fixture(scope="module")
def mesh() -> CertifiedMesh:
    return CertifiedMesh("ABCD", lora=LORA)


def found(directory: Path, *, model: Path | None, preset: str) -> list[Path]:
    directory.mkdir()
    (directory / "preset.toml").write_text(preset)
    return make_mesh(
        directory / "mesh",
        nodes=2,
        host="127.0.0.1",
        port=7400,
        data="builtin",
        model=model,
        seed=0,
        preset=directory / "preset.toml",
        flags={},
    ).directories


# --- founding -------------------------------------------------------------------------------------


def test_a_mesh_is_founded_on_a_models_directory(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    write_base(tmp_path / "base")
    node, _ = found(tmp_path / "made", model=tmp_path / "base", preset=PRESET)
    genesis, anchor, _ = load_genesis(node / "genesis")
    assert genesis.lora == adapters_of(tmp_path / "base", base="base", target_modules=["q_proj"])
    names = [tensor.name for tensor in genesis.schema.tensors]
    stem = "base_model.model.model.layers.0.self_attn.q_proj."
    assert names == [f"{stem}lora_A.weight", f"{stem}lora_B.weight"]
    assert anchor.schema.layout.total == 2 * 2 * 32
    assert load_settings(node).train.base == str(tmp_path / "base")


def test_without_adapters_a_mesh_begins_with_the_weights_of_the_directory(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    node, _ = found(tmp_path / "made", model=tmp_path / "base", preset="")
    genesis, anchor, _ = load_genesis(node / "genesis")
    torch.testing.assert_close(anchor.to_weights(), base.flat, rtol=0, atol=2**-24)
    assert genesis.lora is None and "lora" not in json.loads(genesis.document)
    assert not load_settings(node).train.base, "nobody needs it any more"


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("[lora]\nrank = 2\n", r"\[lora\] an adapter has alpha, base, base_files, rank"),
        ("[lora]\nranks = 2\n", "did you mean rank"),
        ("lora = 3\n", r"lora is a table; write \[lora\]"),
        (PRESET.replace("q_proj", "qkv"), "'qkv'.* not found in the base model"),
    ],
)
def test_a_wrong_lora_table_is_one_line(tmp_path: Path, preset: str, message: str) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    write_base(tmp_path / "base")
    with pytest.raises(UserError, match=message):
        found(tmp_path / "made", model=tmp_path / "base", preset=preset)


def test_adapters_need_a_directory_with_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\[lora\] adapts a model; name its directory"):
        found(tmp_path / "made", model=None, preset=PRESET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"config\.json: No such file"):
        found(tmp_path / "again", model=tmp_path / "empty", preset="")


# --- what a stranger can prove --------------------------------------------------------------------


def test_a_checkpoint_of_adapters_is_proved_and_names_its_base(
    mesh: CertifiedMesh, tmp_path: Path
) -> None:
    directory = mesh.write(tmp_path)
    proof = verify_checkpoint(directory, mesh.mesh_id)
    assert f"base       org/base/model.safetensors has SHA-256 {SHA256}" in proof.lines()
    assert any("adapter_model.safetensors is that anchor" in line for line in proof.lines())
    assert proof.to_json()["base"] == {"org/base/model.safetensors": SHA256}
    assert newest_checkpoint(tmp_path) == directory


def test_what_does_not_belong_to_certified_adapters_is_refused(
    mesh: CertifiedMesh, tmp_path: Path
) -> None:
    directory = mesh.write(tmp_path)
    config = directory / "adapter_config.json"
    good = config.read_text()
    config.write_text(good.replace("org/base", "my/base"))
    assert refusal(directory, mesh.mesh_id).reason == "adapter-config"
    config.write_text(good)
    weights = directory / "adapter_model.safetensors"
    weights.rename(directory / "model.safetensors")
    assert refusal(directory, mesh.mesh_id).reason == "extra-file"
    (directory / "model.safetensors").rename(weights)
    with weights.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"!")
    assert refusal(directory, mesh.mesh_id).reason == "weights"


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"alpha": "4"},
        {"target_modules": "q_proj"},
        {"base": "\x1b[2J"},
        {"base_files": {}},
        {"base_files": {"model.safetensors": "ab"}},
        None,
    ],
)
def test_a_genesis_whose_adapters_cannot_be_is_refused_by_both_readers(
    mesh: CertifiedMesh, tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    content = json.loads(mesh.genesis.document)
    content["lora"] = None if changes is None else {**content["lora"], **changes}
    document = json.dumps(content).encode()
    with pytest.raises(PeerError, match="genesis-malformed"):
        parse_document(document)
    directory = mesh.write(tmp_path)
    (directory / "genesis.json").write_bytes(document)
    assert refusal(directory, None).reason == "malformed-genesis"


def test_both_readers_give_peft_the_same_configuration(tmp_path: Path) -> None:
    # Where the model is a masked one, which peft has no class for.
    for model in ({"model_type": "gpt2"}, TINY_BERT):
        mesh = CertifiedMesh("ABCD", lora=LORA, model=model)
        directory = mesh.write(tmp_path / str(model["model_type"]))
        verify_checkpoint(directory, mesh.mesh_id)
        task = json.loads((directory / "adapter_config.json").read_text())["task_type"]
        assert task == ("CAUSAL_LM" if model is not TINY_BERT else None)


def test_text_from_adapters_needs_the_base_that_was_agreed_on(
    mesh: CertifiedMesh, tmp_path: Path
) -> None:
    directory = mesh.write(tmp_path / "node")
    write_base(tmp_path / "other")

    def write(base: Path | None) -> str:
        return continue_text(directory, "a", base=base, tokens=1, temperature=0.0, seed=0)

    with pytest.raises(ValueError, match="adapters of org/base need that model"):
        write(None)
    with pytest.raises(ValueError, match="other is not this mesh's base model, org/base"):
        write(tmp_path / "other")
    (directory / "genesis.json").write_text("{")
    with pytest.raises(DamagedError, match="cannot be read as a checkpoint"):
        write(tmp_path / "other")


# --- how little it sends --------------------------------------------------------------------------


def bytes_of_a_round(**settings: Any) -> int:
    """What a node would send after a round of two steps on the built-in Llama."""
    config = SessionConfig.from_json(tiny_settings(model=default_config(), batch=2, **settings))
    session = TrainingSession(config)
    anchor = first_anchor(session.model)
    session.rebase(session.model.flat.clone())
    delta = torch.empty(session.parameters)
    order = RoundOrder(round=1, steps=2, tokens_done=0, tokens_per_step=64)
    session.run_round(order, delta, before_step=lambda: None)
    parameters = genesis_parameters(
        [(bytes(32), 1000, 1000)], anchor.schema, kept_per_chunk=512, alpha=1.0
    )
    residual = Residual(torch.zeros(session.parameters), beta=0.95)
    residual.absorb(delta)
    return len(say(residual, parameters, anchor.schema, 1)[1])


def test_a_round_of_adapters_is_at_most_a_twentieth_of_a_round_of_the_model(
    tmp_path: Path,
) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    write_base(tmp_path, default_config())
    lora = adapters_of(tmp_path, rank=8, alpha=16).to_json()
    adapters = bytes_of_a_round(lora=lora, base=str(tmp_path))
    assert 0 < adapters <= 0.05 * bytes_of_a_round()
