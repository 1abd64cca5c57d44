"""An image classifier as a Shoal task: the 8x8 handwritten digits that come with scikit-learn.

Shard I of N has every N-th image from the I-th on. Held out, for all, is every fifth image.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import shoal

CLASSES = 10
SIDE = 8
SHADES = 16
HELD_OUT_EVERY = 5
CHANNELS_MAX = 1024


class Digits(shoal.Task):
    """Which digit is it? config: `channels` of the convolutions, 16 where it says nothing."""

    version = "1"

    def build(self) -> nn.Module:
        channels = self.config.get("channels", 16)
        if type(channels) is not int or not 1 <= channels <= CHANNELS_MAX:
            raise ValueError(f"channels must be a whole number from 1 to {CHANNELS_MAX}")
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * (SIDE // 2) ** 2, CLASSES),
        )

    def read(self, source: str) -> tuple[TensorDataset, TensorDataset]:
        """source: builtin:I/N, or a CSV file: 64 shades (0 to 16) and the digit on each line."""
        shard = re.fullmatch(r"builtin:(\d{1,4})/(\d{1,4})", source)
        pixels, labels = _shipped() if shard else _from_file(source)
        held_out = np.arange(len(labels)) % HELD_OUT_EVERY == 0
        train = np.flatnonzero(~held_out)
        if shard:
            index, shards = int(shard[1]), int(shard[2])
            if not index < shards:
                raise ValueError(f"{source}: builtin:I/N has I from 0 to N-1")
            train = train[index::shards]
        return _dataset(pixels, labels, train), _dataset(pixels, labels, held_out)

    def loss(self, module: nn.Module, batch: Any) -> torch.Tensor:
        images, labels = batch
        return functional.cross_entropy(module(images), labels)

    def evaluate(self, module: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        logits, labels = zip(*((module(images), labels) for images, labels in batches), strict=True)
        said, true = torch.cat(logits).float(), torch.cat(labels)
        return {
            "loss": float(functional.cross_entropy(said, true)),
            "accuracy": float((said.argmax(1) == true).float().mean()),
        }


def _shipped() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


def _from_file(path: str) -> tuple[np.ndarray, np.ndarray]:
    table = np.loadtxt(path, delimiter=",", ndmin=2)
    if table.shape[1] != SIDE * SIDE + 1:
        raise ValueError(f"{path}: a line has 64 shades and the digit, not {table.shape[1]} values")
    return table[:, :-1], table[:, -1].astype(np.int64)


def _dataset(pixels: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> TensorDataset:
    images = torch.from_numpy(pixels[chosen] / SHADES).float().view(-1, 1, SIDE, SIDE)
    return TensorDataset(images, torch.from_numpy(labels[chosen]))
