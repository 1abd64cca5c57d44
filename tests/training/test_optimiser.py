"""Two optimisers on one flat vector: who moves what, and that it is learned from."""

from typing import Any

import pytest
import torch

from shoal.training.model import FlatModel, build_model, default_config
from shoal.training.optimiser import Optimiser, hidden_matrices

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SMALL = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
MODELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # Its head is its embeddings.
    "llama": (default_config(), LLAMA),
    "untied llama": (
        {**default_config(), "tie_word_embeddings": False},
        LLAMA,
    ),
    "gpt2": (
        {"model_type": "gpt2", **SMALL, "n_embd": 16, "n_layer": 1, "n_head": 2},
        ("c_attn", "c_proj", "c_fc"),
    ),
}
WINDOWS = torch.arange(4 * 17).reshape(4, 17) % 64


def trained(muon_scale: float, steps: int = 30) -> tuple[FlatModel, list[float]]:
    model = FlatModel(build_model(default_config(), seed=3))
    optimiser = Optimiser(model, weight_decay=0.1, muon_scale=muon_scale)
    losses = []
    for _ in range(steps):
        loss = model.loss(WINDOWS)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(1e-3)
        model.gradient.zero_()
        losses.append(float(loss.detach()))
    return model, losses


@pytest.mark.parametrize("name", MODELS)
def test_muon_has_the_matrices_between_the_two_ends(name: str) -> None:
    config, parts = MODELS[name]
    module = build_model(config, seed=0)
    chosen = {id(matrix) for matrix in hidden_matrices(module)}
    for each, parameter in module.named_parameters():
        inside = parameter.ndim == 2 and each.split(".")[-2] in parts
        assert (id(parameter) in chosen) == inside, each


def test_without_muon_it_is_adamw_over_the_whole_vector() -> None:
    model, _ = trained(0.0, steps=5)
    same = FlatModel(build_model(default_config(), seed=3))
    plain = torch.optim.AdamW(same.trained(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        same.loss(WINDOWS).backward()  # type: ignore[no-untyped-call]
        plain.step()
        same.gradient.zero_()
    assert torch.allclose(model.flat, same.flat, atol=1e-6)


def test_both_move_the_one_vector_and_it_learns() -> None:
    model, losses = trained(4.0)
    assert losses[-1] < losses[0] - 1.0
    first = FlatModel(build_model(default_config(), seed=3))
    before, after = (dict(each.module.named_parameters()) for each in (first, model))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    views = torch.cat([parameter.detach().flatten() for parameter in model.trained()])
    assert torch.equal(views, model.flat), "the parameters are views of the vector still"


def test_a_step_of_muon_is_as_long_as_one_of_adamw_times_its_scale() -> None:
    start = FlatModel(build_model(default_config(), seed=3))
    for scale in (1.0, 4.0):
        model, _ = trained(scale, steps=1)
        moved = [
            (new - old).detach()
            for old, new in zip(
                hidden_matrices(start.module), hidden_matrices(model.module), strict=True
            )
        ]
        for matrix in moved:
            # 0.2 is what AdamW's steps are on average; five iterations come near it, not to it.
            rms = float(matrix.square().mean().sqrt()) / (1e-3 * scale)
            assert 0.1 < rms < 0.3
