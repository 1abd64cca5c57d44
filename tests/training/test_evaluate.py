"""The held-out loss."""

import math

import numpy as np
import pytest
import torch

from shoal.training.data import Corpus
from shoal.training.errors import TrainingError
from shoal.training.evaluate import batch_losses, held_out_batches, held_out_loss
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import Tokens
from tests.training.worker_process import TINY_BERT, TINY_MODEL


@pytest.fixture(scope="module")
def model() -> FlatModel:
    return FlatModel(build_model(TINY_MODEL, seed=0))


def test_a_model_that_knows_nothing_has_the_loss_of_a_fair_guess(model: FlatModel) -> None:
    tokens: Tokens = np.arange(1000).astype(np.uint8)
    loss = held_out_loss(model, torch.zeros(model.size), tokens, batches=3, batch=4, sequence=16)
    assert loss == pytest.approx(math.log(256), abs=1e-5)


def test_the_loss_is_the_mean_over_windows_however_they_are_batched(model: FlatModel) -> None:
    tokens: Tokens = np.random.default_rng(0).integers(0, 256, 17 * 7, dtype=np.uint8)
    losses = [
        held_out_loss(model, model.flat, tokens, batches=100, batch=batch, sequence=16)
        for batch in (1, 3, 7, 50)
    ]
    windows = torch.from_numpy(tokens.astype(np.int64)).view(7, 17)
    assert losses == pytest.approx([model.loss(windows).item()] * 4, abs=1e-5)


def test_a_masked_model_is_asked_the_same_every_time_however_it_is_batched() -> None:
    masked = FlatModel(build_model(TINY_BERT, seed=0))
    tokens: Tokens = np.random.default_rng(0).integers(0, 256, 17 * 7, dtype=np.uint8)
    losses = [
        held_out_loss(masked, masked.flat, tokens, batches=100, batch=batch, sequence=16)
        for batch in (1, 3, 7, 7)
    ]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)


def test_the_number_of_batches_bounds_the_work(model: FlatModel) -> None:
    # Only the first window of many is read: the text behind it does not matter.
    one: Tokens = np.zeros(10_000, dtype=np.uint8)
    other = one.copy()
    other[9000:] = 7
    losses = {
        held_out_loss(model, model.flat, tokens, batches=1, batch=1, sequence=16)
        for tokens in (one, other)
    }
    assert len(losses) == 1


def test_the_shortest_text_is_one_window(model: FlatModel) -> None:
    corpus = Corpus("x", np.zeros(17, np.uint8), np.zeros(17, np.uint8))
    corpus.require(sequence=16, vocabulary_size=256)
    loss = held_out_loss(model, model.flat, corpus.held_out, batches=8, batch=8, sequence=16)
    assert 4 < loss < 7


def test_broken_weights_are_said_to_be_broken(model: FlatModel) -> None:
    tokens: Tokens = np.zeros(100, dtype=np.uint8)
    with pytest.raises(TrainingError, match="weights to evaluate are broken"):
        held_out_loss(
            model, torch.full((model.size,), np.nan), tokens, batches=1, batch=1, sequence=16
        )


def test_batch_by_batch_it_is_the_same_loss(model: FlatModel) -> None:
    tokens: Tokens = np.random.default_rng(0).integers(0, 256, 17 * 8, dtype=np.uint8)
    size = {"batches": 100, "batch": 2, "sequence": 16}
    losses = batch_losses(model, model.flat, held_out_batches(tokens, **size))
    assert len(losses) == len(set(losses)) == 4
    whole = held_out_loss(model, model.flat, tokens, **size)
    assert sum(losses) / 4 == pytest.approx(whole, abs=1e-5)


def test_a_masked_model_is_compared_on_the_same_tokens() -> None:
    masked = FlatModel(build_model(TINY_BERT, seed=0))
    tokens: Tokens = np.random.default_rng(0).integers(0, 256, 17 * 8, dtype=np.uint8)
    once, twice = (
        batch_losses(masked, masked.flat, held_out_batches(tokens, batches=4, batch=2, sequence=16))
        for _ in range(2)
    )
    assert once == twice


def test_weights_that_a_liar_broke_end_nothing(model: FlatModel) -> None:
    """Unlike those of a committed model, whose loss has to be a number."""
    tokens: Tokens = np.zeros(100, dtype=np.uint8)
    own = model.flat.clone()
    broken = torch.full((model.size,), math.nan)
    parts = held_out_batches(tokens, batches=2, batch=1, sequence=16)
    assert all(map(math.isnan, batch_losses(model, broken, parts)))
    assert torch.equal(model.flat, own)
