"""Adapters: what is trained of a model, and that its base is the one that was agreed on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.training.adapters import Lora, adapted_model, base_files, require_base
from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel, load_model
from shoal.training.session import RoundOrder, SessionConfig, TrainingSession
from shoal.training.weights_file import write_weights
from tests.training.base_models import ADAPTERS, adapters_of, write_base
from tests.training.worker_process import TINY_BERT, TINY_MODEL, tiny_settings

WINDOWS = torch.arange(66).view(2, 33)
# Values of the adapters: two modules, two matrices each, of rank 2 by 32.
VALUES = 2 * 2 * 2 * 32


def adapted(directory: Path) -> FlatModel:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    return FlatModel(adapted_model(TINY_MODEL, adapters_of(directory), directory, seed=1))


def test_fresh_adapters_are_all_that_is_trained_and_change_nothing_yet(tmp_path: Path) -> None:
    base = write_base(tmp_path)
    model = adapted(tmp_path)
    assert model.size == VALUES
    assert torch.equal(model.loss(WINDOWS), base.loss(WINDOWS))
    again = adapted(tmp_path)
    assert torch.equal(model.flat, again.flat) and model.flat.any()


# peft asks transformers in a way that its newest version warns of.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_opens_what_is_written(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    model = adapted(tmp_path / "base")
    model.flat.add_(torch.randn(model.size, generator=torch.Generator().manual_seed(0)))
    from peft import PeftModel

    write_weights(tmp_path / "adapter_model.safetensors", model, model.flat)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    config["target_modules"] = ADAPTERS["target_modules"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    opened = PeftModel.from_pretrained(load_model(TINY_MODEL, tmp_path / "base"), tmp_path)
    with model.holding(model.flat):
        torch.testing.assert_close(opened(WINDOWS).logits, model.module(WINDOWS).logits)


def test_a_session_trains_adapters_and_leaves_the_base_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    base = write_base(tmp_path)
    lora = adapters_of(tmp_path).to_json()
    config = SessionConfig.from_json(tiny_settings(lora=lora, base=str(tmp_path)))
    session = TrainingSession(config)
    session.rebase(session.model.flat.clone())
    before = session.evaluate(session.model.flat.clone())["loss"]
    delta = torch.empty(session.parameters)
    order = RoundOrder(round=1, steps=40, tokens_done=0, tokens_per_step=128)
    session.run_round(order, delta, before_step=lambda: None)
    assert session.evaluate(session.model.flat.clone())["loss"] < before - 0.01
    frozen = dict(session.model.module.named_parameters())
    for name, value in base.module.named_parameters():
        owner, _, last = name.rpartition(".")
        adapted = f"{owner}.base_layer.{last}"
        assert torch.equal(frozen[name if name in frozen else adapted], value)


def test_another_base_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for name, seed in (("agreed", 5), ("other", 6)):
        write_base(tmp_path / name, seed=seed)
    lora = adapters_of(tmp_path / "agreed")
    assert require_base(lora, str(tmp_path / "agreed")) == tmp_path / "agreed"
    settings = tiny_settings(lora=lora.to_json(), base=str(tmp_path / "other"))
    with pytest.raises(TrainingError, match="other is not this mesh's base model, tiny") as caught:
        TrainingSession(SessionConfig.from_json(settings))
    assert "\n" not in str(caught.value)
    assert base_files(tmp_path / "other")["model.safetensors"] in str(caught.value)
    with pytest.raises(TrainingError, match="adapters of tiny need that model"):
        require_base(lora, None)
    with pytest.raises(TrainingError, match=r"holds no model\.safetensors"):
        require_base(lora, str(tmp_path))
    # A file more would be read as well.
    (tmp_path / "agreed" / "model.safetensors").rename(
        tmp_path / "agreed" / "model-00001-of-00001.safetensors"
    )
    with pytest.raises(TrainingError, match=r"SHA-256 of model-0.*, the mesh has agreed on none"):
        require_base(lora, str(tmp_path / "agreed"))


def test_a_directory_that_holds_other_weights_is_one_line(tmp_path: Path) -> None:
    write_base(tmp_path)
    for config, message in (
        ({**TINY_MODEL, "num_hidden_layers": 3}, "fewer than the model's|do not hold model.layers"),
        ({**TINY_MODEL, "intermediate_size": 32}, "size"),
        ({**TINY_MODEL, "hidden_size": 4096}, "files hold fewer than the model's"),
        (TINY_BERT, "do not hold"),
    ):
        with pytest.raises(TrainingError, match=message) as caught:
            load_model(config, tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        TrainingError, match="holds an adapter; name the directory of a whole model"
    ):
        load_model(TINY_MODEL, tmp_path)


def test_modules_that_the_base_lacks_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    write_base(tmp_path)
    lora = adapters_of(tmp_path, target_modules=["qkv"])
    with pytest.raises(TrainingError, match=r"'qkv'.* not found in the base model"):
        adapted_model(TINY_MODEL, lora, tmp_path, seed=0)


def test_without_peft_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TrainingError, match=r"needs peft; pip install 'shoal\[lora\]'"):
        adapted_model(TINY_MODEL, adapters_of(tmp_path), tmp_path, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank must be a whole number from 1 to 4096"),
        ({"alpha": 1.5}, "alpha must be a whole number from 1 to 65536"),
        ({"target_modules": "all-linear"}, "target_modules must be a list"),
        ({"target_modules": [".*("]}, "target_modules must be names"),
        ({"base": "tiny\x1b[2J"}, "base must be the name of a model"),
        ({"base_files": {}}, "base_files must name the files"),
        ({"base_files": {"../model.safetensors": "0" * 64}}, "must be safetensors files"),
        ({"base_files": {"model.safetensors": "0"}}, "SHA-256 in hex"),
        ({"dropout": 0.1}, "and nothing else"),
    ],
)
def test_adapters_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    sound = {**ADAPTERS, "base": "tiny", "base_files": {"model.safetensors": "0" * 64}}
    assert Lora.from_json(sound).to_json() == sound
    with pytest.raises(TrainingError, match=message):
        Lora.from_json({**sound, **changes})
