"""How good the model is: mean cross-entropy on text that nobody trains on.

The windows are spread evenly over the held-out tokens, so the same text, weights and number of
batches give the same figure at any time and on any node. A masked model is asked for the same
tokens every time.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from shoal.training.data import windows
from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel
from shoal.training.tokenizer import Tokens

MASK_SEED = 0


def held_out_loss(
    model: FlatModel,
    weights: torch.Tensor,
    held_out: Tokens,
    *,
    batches: int,
    batch: int,
    sequence: int,
) -> float:
    """Return the loss of `weights` [P] in nats per token, over at most `batches` batches.

    held_out: at least `sequence` + 1 tokens. The model's own parameters are left as they were.
    Raises TrainingError where the loss is not a number.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    parts = held_out_batches(held_out, batches=batches, batch=batch, sequence=sequence)
    masks = np.random.default_rng(MASK_SEED)
    with model.holding(weights), torch.no_grad():
        for part in parts:
            total += model.loss(part, masks).double().cpu() * len(part)
            count += len(part)
    mean = float(total) / count
    if not np.isfinite(mean):
        raise TrainingError("the held-out loss is not a number: the weights to evaluate are broken")
    return mean


def held_out_batches(
    held_out: Tokens, *, batches: int, batch: int, sequence: int
) -> Iterator[torch.Tensor]:
    """Give at most `batches` batches of windows, int64 [batch or fewer, sequence + 1]."""
    last_start = len(held_out) - sequence - 1
    assert last_start >= 0, "a source is checked for its length when it is loaded"
    count = max(1, min(batches * batch, len(held_out) // (sequence + 1)))
    starts = np.linspace(0, last_start, count).astype(np.int64)
    for first in range(0, count, batch):
        yield windows(held_out, starts[first : first + batch], sequence)


def batch_losses(model: FlatModel, weights: torch.Tensor, batches: Iterable[Any]) -> list[float]:
    """Return the loss of `weights` [P] on each batch: for comparing weights in pairs.

    One that is not a number is an answer here: the weights may be what a liar wants them to be.
    """
    masks = np.random.default_rng(MASK_SEED)
    with model.holding(weights), torch.no_grad():
        return [float(model.loss(batch, masks)) for batch in batches]
