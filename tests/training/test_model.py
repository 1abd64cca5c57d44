"""The model, its flat parameters, and the files that transformers opens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.training.errors import TrainingError
from shoal.training.masking import mask
from shoal.training.model import FlatModel, build_model, default_config, with_mask_token
from shoal.training.tokenizer import ByteTokenizer
from shoal.training.weights_file import read_weights, write_weights
from tests.training.worker_process import TINY_BERT, TINY_MODEL


def test_the_built_in_model_is_small_and_tied() -> None:
    model = FlatModel(build_model(default_config(), seed=0))
    assert model.size == 824_448
    names = [name for name, _ in model.names_and_shapes()]
    assert names[0] == "model.embed_tokens.weight"
    assert "lm_head.weight" not in names, "a tied weight is there once"
    assert len(set(names)) == len(names) == 38
    assert model.vocabulary_size == 256


def test_the_flat_vector_is_the_parameters_and_the_gradient_their_gradients() -> None:
    model = FlatModel(build_model(TINY_MODEL, seed=0))
    windows = torch.arange(66).view(2, 33)
    before = model.loss(windows).item()
    model.loss(windows).backward()  # type: ignore[no-untyped-call]
    offset = 0
    for name, shape in model.names_and_shapes():
        parameter = model.module.get_parameter(name)
        part = slice(offset, offset + parameter.numel())
        assert torch.equal(model.flat[part].view(shape), parameter)
        assert parameter.grad is not None
        assert torch.equal(model.gradient[part].view(shape), parameter.grad)
        offset += parameter.numel()
    assert offset == model.size
    with torch.no_grad():
        model.flat -= 0.5 * model.gradient
    assert model.loss(windows).item() < before - 0.05


def test_holding_other_weights_ends() -> None:
    model = FlatModel(build_model(TINY_MODEL, seed=0))
    own = model.flat.clone()
    with model.holding(torch.zeros(model.size)):
        assert not model.flat.any()
        assert not model.module.training
    assert torch.equal(model.flat, own)
    assert model.module.training


def test_a_seed_gives_the_same_weights_and_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = (FlatModel(build_model(TINY_MODEL, seed=3)).flat for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one, two)
    assert not torch.equal(one, FlatModel(build_model(TINY_MODEL, seed=4)).flat)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**TINY_MODEL, "model_type": "lama"}, 'model_type "lama"; similar are .*llama'),
        ({}, 'model_type ""'),
        ({**TINY_MODEL, "auto_map": {"AutoConfig": "x"}}, "may not set auto_map"),
        ({**TINY_MODEL, "attn_implementation": "o/kernels"}, "may not set attn_implementation"),
        ({**TINY_MODEL, "num_hidden_layers": 10**6}, "num_hidden_layers must be from 1 to 1024"),
        ({**TINY_MODEL, "vocab_size": 10**9}, "32.* parameters; at most 500000000"),
        ({**TINY_MODEL, "hidden_size": "wide"}, "the model configuration does not work"),
        ({**TINY_MODEL, "hidden_size": -4}, "the model configuration does not work"),
        (
            {**TINY_MODEL, "architectures": ["BertForMaskedLM"]},
            "no masked language model of .*llama",
        ),
        ({**TINY_BERT, "architectures": ["BertLMHeadModel"]}, "a bert looks both ways"),
        (
            {**TINY_BERT, "mask_token_id": None},
            "mask_token_id must be a token from 0 to 255, not No",
        ),
        (
            {**TINY_BERT, "mask_token_id": 256},
            "mask_token_id must be a token from 0 to 255, not 256",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message) as caught:
        build_model(config, seed=0)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_directory_opens_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = FlatModel(build_model(TINY_MODEL, seed=0))
    tokenizer = ByteTokenizer()
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY_MODEL))
    write_weights(tmp_path / "model.safetensors", model, model.flat)

    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    windows = torch.arange(33)[None]
    assert torch.allclose(opened(windows).logits, model.module(windows).logits, atol=1e-5)
    text = "def f():\n\treturn 'Grüße, 世界' # Ā  \r\n"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == list(text.encode())


def test_a_masked_model_is_asked_for_what_it_cannot_see() -> None:
    model = FlatModel(build_model(TINY_BERT, seed=0))
    model.module.eval()
    windows = torch.randint(0, 200, (4, 65), generator=torch.Generator().manual_seed(0))
    loss = model.loss(windows, np.random.default_rng(3))
    shown, targets = mask(
        windows[:, :-1], np.random.default_rng(3), mask_token=255, vocabulary_size=256
    )
    # transformers' own loss, over the same masks.
    expected = model.module(input_ids=shown, labels=targets).loss
    torch.testing.assert_close(loss, expected)
    assert loss != model.loss(windows, np.random.default_rng(4)), "others are hidden"


def test_a_masked_checkpoint_opens_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model = FlatModel(build_model(TINY_BERT, seed=0))
    (tmp_path / "config.json").write_text(json.dumps(TINY_BERT))
    write_weights(tmp_path / "model.safetensors", model, model.flat)
    opened, loading = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert opened.config.mask_token_id == 255
    windows = torch.arange(33)[None]
    with model.holding(model.flat):
        torch.testing.assert_close(opened(windows).logits, model.module(windows).logits)


def test_the_tokenizer_says_what_hides_a_token_where_the_configuration_does_not() -> None:
    unsaid = {key: value for key, value in TINY_BERT.items() if key != "mask_token_id"}
    assert with_mask_token(unsaid, ByteTokenizer()) == TINY_BERT
    assert with_mask_token({**unsaid, "mask_token_id": 3}, ByteTokenizer())["mask_token_id"] == 3
    assert with_mask_token(TINY_MODEL, ByteTokenizer()) == TINY_MODEL, "a causal one has none"


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_weights_survive_a_file(tmp_path: Path, name: str) -> None:
    model = FlatModel(build_model(TINY_MODEL, seed=0))
    write_weights(tmp_path / name, model, model.flat)
    assert torch.equal(read_weights(tmp_path / name, model), model.flat)


def test_weights_that_are_missing_broken_or_of_another_model_are_refused(tmp_path: Path) -> None:
    model = FlatModel(build_model(TINY_MODEL, seed=0))
    wider = FlatModel(build_model({**TINY_MODEL, "intermediate_size": 96}, seed=0))
    for name in ("wide.safetensors", "wide.bin"):
        write_weights(tmp_path / name, wider, wider.flat)
    (tmp_path / "broken.safetensors").write_bytes(b"not this")
    for name, message in {
        "wide.safetensors": "gate_proj.weight is of shape",
        "wide.bin": "values, but the model has",
        "broken.safetensors": "not a safetensors file",
        "none.bin": "No such file",
        "none.safetensors": "No such file",
    }.items():
        with pytest.raises(TrainingError, match=message):
            read_weights(tmp_path / name, model)
