"""Local steps: what a node does with most of its time.

The learning rate is a function of how many tokens the whole mesh has committed, not of how many
steps this node made: slow and fast nodes, and nodes that join late, are then at the same point of
the schedule. A node whose optimiser is new although the mesh is not warms up on its own first:
AdamW's first steps are as long as the learning rate allows whatever the gradient is.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from shoal.training.data import Source
from shoal.training.model import FlatModel
from shoal.training.optimiser import Optimiser

GRADIENT_NORM_MAX = 1.0
# The learning rate begins and ends at this share of its largest value.
FLOOR_SHARE = 0.1
# Steps over which a node with a new optimiser reaches the learning rate of a running mesh
# (algorithms.md 1.4, "late joiner").
LATE_WARMUP_STEPS = 50
# What chooses masks, besides seed, round and step, which alone choose the windows.
MASK_STREAM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up, then half a cosine down to a tenth; in tokens of the whole mesh."""

    learning_rate: float
    warmup_tokens: int
    schedule_tokens: int

    def at(self, tokens: int) -> float:
        """Return the learning rate when `tokens` tokens have been trained on."""
        if tokens < self.warmup_tokens:
            share = FLOOR_SHARE + (1 - FLOOR_SHARE) * tokens / self.warmup_tokens
        else:
            length = max(1, self.schedule_tokens - self.warmup_tokens)
            done = min(1.0, (tokens - self.warmup_tokens) / length)
            share = FLOOR_SHARE + (1 - FLOOR_SHARE) * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * share


class LocalTrainer:
    """One model's optimiser on one node's own text."""

    def __init__(
        self,
        model: FlatModel,
        corpus: Source,
        schedule: Schedule,
        *,
        batch: int,
        sequence: int,
        weight_decay: float,
        seed: int,
        muon_scale: float = 0.0,
    ) -> None:
        """muon_scale: as in Optimiser."""
        self._model = model
        self._corpus = corpus
        self.schedule = schedule
        self._batch = batch
        self._sequence = sequence
        self._seed = seed
        self.optimiser = Optimiser(model, weight_decay=weight_decay, muon_scale=muon_scale)
        # All gradients as one, to be clipped in one pass.
        self._parameter = torch.nn.Parameter(model.flat)
        self._parameter.grad = model.gradient
        # Whoever shares gradients with other processes puts their loss here (group.py).
        self.loss = model.loss
        self._steps_done = 0
        self._late = False

    @property
    def step_tokens(self) -> int:
        """How many tokens one step trains on."""
        return self._batch * self._sequence

    def step(self, *, round: int, step: int, tokens: int) -> torch.Tensor:
        """Make step `step` of round `round`, when the mesh has done `tokens` tokens.

        Returns the batch's loss before the step (nats per token), a scalar without gradient that
        may still be on its way from the GPU.
        """
        if self._steps_done == 0:
            self._late = tokens > 0
        windows = self._corpus.batch(
            seed=self._seed, round=round, step=step, batch=self._batch, sequence=self._sequence
        )
        masks = None
        if self._model.mask_token is not None:
            masks = np.random.default_rng((self._seed, round, step, MASK_STREAM))
        loss = self.loss(windows, masks)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([self._parameter], GRADIENT_NORM_MAX)
        self.optimiser.step(self._learning_rate(tokens))
        self._model.gradient.zero_()
        self._steps_done += 1
        return loss.detach()

    def _learning_rate(self, tokens: int) -> float:
        share = (self._steps_done + 1) / LATE_WARMUP_STEPS if self._late else 1.0
        return self.schedule.at(tokens) * min(1.0, share)
