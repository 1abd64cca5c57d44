"""Weights as they were after certain rounds, to be measured later: raw float32 values on disk.

What a node trains with between two checkpoints is on nobody's disk otherwise: its own model, the
live anchor with everything that it has heard so far, and the mean of its own (own_mean.py) where it
keeps one. training/weights_file.py reads them.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

SNAPSHOTS = "snapshots"


class Snapshots:
    """DIRECTORY/snapshots/ROUND-KIND.f32 of the rounds that were asked for."""

    def __init__(self, directory: Path, rounds: Collection[int]) -> None:
        self.rounds = frozenset(rounds)
        self._directory = directory / SNAPSHOTS

    def keep(self, round: int, kinds: Mapping[str, torch.Tensor]) -> None:
        """Write weights by kind, float32 [P]; a file is whole when it has its name."""
        self._directory.mkdir(exist_ok=True)
        for name, weights in kinds.items():
            path = self._directory / f"{round}-{name}.f32"
            partial = path.with_suffix(".partial")
            weights.cpu().numpy().astype("<f4", copy=False).tofile(partial)
            partial.rename(path)
