"""Many small language models trained side by side in one process, for simulations.

A character-level model: the embeddings of the last CONTEXT characters, one hidden layer, a softmax
over the next character. All models are one matrix, float32 [n, P]; a step of all of them is a few
batched matrix products, so a thousand models cost a thousand times the arithmetic of one and no
more. What a row does depends on that row alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from shoal.training.local_steps import GRADIENT_NORM_MAX, LATE_WARMUP_STEPS
from shoal.training.optimiser import BETAS
from shoal.training.tokenizer import Tokens

CONTEXT = 8
EMBEDDING = 16
EPSILON = 1e-8
# Models that train in one go.
BLOCK = 16
# Line feed and printable ASCII; everything else is one more character.
CHARACTERS = 97


def characters(tokens: Tokens) -> torch.Tensor:
    """Bytes as characters of this model: int64, each below CHARACTERS."""
    table = np.full(256, CHARACTERS - 1, dtype=np.int64)
    table[32:127] = np.arange(1, 96)
    table[10] = 0
    return torch.from_numpy(table[tokens])


@dataclass(frozen=True)
class StackedModel:
    """The architecture; its parameters are rows of a matrix. hidden: units of the hidden layer."""

    hidden: int = 128

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes in the order of the flat vector."""
        return {
            "embed": (CHARACTERS, EMBEDDING),
            "hidden.weight": (CONTEXT * EMBEDDING, self.hidden),
            "hidden.bias": (self.hidden,),
            "out.weight": (self.hidden, CHARACTERS),
            "out.bias": (CHARACTERS,),
        }

    @property
    def parameters(self) -> int:
        """P."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial(self, generator: torch.Generator) -> torch.Tensor:
        """First weights of one model: float32 [P]; matrices scaled by their inputs, biases 0."""
        parts = []
        for name, shape in self.shapes.items():
            scale = 0.0 if name.endswith("bias") else shape[0] ** -0.5
            if name == "embed":
                scale = 0.5
            parts.append(torch.randn(shape, generator=generator).reshape(-1) * scale)
        return torch.cat(parts)

    def losses(self, rows: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """Mean loss of each model in nats per character: float32 [n].

        rows: float32 [n, P]; windows: int64 [n, B, CONTEXT + T], of which the last T are predicted.
        """
        embed, weight, bias, out, out_bias = self._views(rows)
        models, batch, length = windows.shape
        predicted = length - CONTEXT
        flat = windows.reshape(models, -1)
        table = embed.reshape(models * CHARACTERS, EMBEDDING)
        offsets = torch.arange(models)[:, None] * CHARACTERS
        vectors = functional.embedding(flat + offsets, table)
        inputs = vectors.view(models, batch, length, EMBEDDING)[:, :, :-1]
        # [n, B, T, E, CONTEXT] -> [n, B * T, CONTEXT * E], oldest character first.
        context = inputs.unfold(2, CONTEXT, 1).transpose(-1, -2)
        context = context.reshape(models, batch * predicted, CONTEXT * EMBEDDING)
        hidden = functional.gelu(torch.baddbmm(bias[:, None], context, weight))
        logits = torch.baddbmm(out_bias[:, None], hidden, out)
        targets = windows[:, :, CONTEXT:].reshape(models, batch * predicted)
        losses = functional.cross_entropy(
            logits.view(-1, CHARACTERS), targets.reshape(-1), reduction="none"
        )
        return losses.view(models, -1).mean(dim=1)

    def _views(self, rows: torch.Tensor) -> list[torch.Tensor]:
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        pieces = torch.split(rows, sizes, dim=1)
        return [
            piece.reshape(len(rows), *shape)
            for piece, shape in zip(pieces, self.shapes.values(), strict=True)
        ]


class StackedText:
    """Each model's own text, as characters, and where its batches come from."""

    def __init__(self, texts: Sequence[torch.Tensor], *, seed: int) -> None:
        """texts: int64 [length] for each model, each longer than a window."""
        self._text = torch.cat(list(texts))
        lengths = [len(text) for text in texts]
        self._lengths = np.array(lengths)
        self._starts = np.cumsum([0, *lengths[:-1]])
        self._seed = seed

    @property
    def lengths(self) -> list[int]:
        """Characters of each model's text."""
        return [int(length) for length in self._lengths]

    def batch(
        self, models: Sequence[int], *, step: int, batch: int, predicted: int
    ) -> torch.Tensor:
        """Random windows of these models' own texts: int64 [n, batch, CONTEXT + predicted]."""
        length = CONTEXT + predicted
        rng = np.random.default_rng((self._seed, step))
        chance = rng.random((len(self._lengths), batch))[models]
        room = self._lengths[models] - length
        starts = self._starts[models][:, None] + (chance * (room[:, None] + 1)).astype(np.int64)
        positions = starts[:, :, None] + np.arange(length)
        return self._text[torch.from_numpy(positions)]


class StackedAdamW:
    """AdamW of each row on its own: moments, counts of steps, gradient norms clipped at 1.

    Source: Loshchilov & Hutter (2019), with the constants of local_steps.py.
    """

    def __init__(self, models: int, parameters: int, *, weight_decay: float = 0.1) -> None:
        self._first = torch.zeros(models, parameters)
        self._second = torch.zeros(models, parameters)
        self._steps = torch.zeros(models)
        self._late = torch.zeros(models, dtype=torch.bool)
        self._weight_decay = weight_decay

    def reset(self, model: int) -> None:
        """A newcomer's optimiser: it knows nothing, and warms up (local_steps.py)."""
        self._first[model] = 0.0
        self._second[model] = 0.0
        self._steps[model] = 0.0
        self._late[model] = True

    def step(
        self, models: torch.Tensor, rows: torch.Tensor, gradient: torch.Tensor, rate: float
    ) -> None:
        """Change `rows`, float32 [m, P], in place: those of `models`, int64 [m], in order."""
        norms = gradient.norm(dim=1, keepdim=True)
        gradient = gradient * (GRADIENT_NORM_MAX / norms.clamp_min(GRADIENT_NORM_MAX))
        self._steps[models] += 1
        steps = self._steps[models][:, None]
        first = self._first[models].lerp_(gradient, 1 - BETAS[0])
        second = self._second[models].mul_(BETAS[1])
        second.addcmul_(gradient, gradient, value=1 - BETAS[1])
        self._first[models], self._second[models] = first, second
        warm = torch.where(self._late[models][:, None], steps / LATE_WARMUP_STEPS, 1.0)
        rates = rate * warm.clamp_max(1.0)
        root = (second / (1 - BETAS[1] ** steps)).sqrt_().add_(EPSILON)
        rows.mul_(1 - rates * self._weight_decay)
        rows.sub_(rates / (1 - BETAS[0] ** steps) * (first / root))


@dataclass(frozen=True, slots=True)
class Steps:
    """Local steps of one round. rates: the learning rate of each; first: the number of the first,
    which chooses the text; batch windows of `predicted` characters are learned from in each."""

    rates: Sequence[float]
    first: int
    batch: int
    predicted: int


def train(
    model: StackedModel,
    optimizer: StackedAdamW,
    text: StackedText,
    models: Sequence[int],
    rows: torch.Tensor,
    steps: Steps,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train some of the stack: new rows, float32 [m, P], and mean losses, float32 [m].

    models: which ones; rows: where they start, left unchanged.
    """
    trained, losses = [], []
    # A block of models makes all its steps before the next one: what it touches stays in the cache.
    for first in range(0, len(models), BLOCK):
        block = models[first : first + BLOCK]
        ends, loss = _train_block(model, optimizer, text, block, rows[first:][:BLOCK], steps)
        trained.append(ends)
        losses.append(loss)
    return torch.cat(trained), torch.cat(losses)


def _train_block(
    model: StackedModel,
    optimizer: StackedAdamW,
    text: StackedText,
    models: Sequence[int],
    rows: torch.Tensor,
    steps: Steps,
) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.tensor(list(models))
    rows = rows.clone()
    total = torch.zeros(len(rows))
    for offset, rate in enumerate(steps.rates):
        windows = text.batch(
            models, step=steps.first + offset, batch=steps.batch, predicted=steps.predicted
        )
        leaf = rows.detach().requires_grad_()
        losses = model.losses(leaf, windows)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        optimizer.step(index, rows, gradient, rate)
        total += losses.detach()
    return rows, total / len(steps.rates)


def evaluate(model: StackedModel, rows: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Loss of each model, float32 [n], on the same windows, int64 [B, CONTEXT + T]."""
    with torch.no_grad():
        return torch.cat([model.losses(row[None], windows[None]) for row in rows])
