"""Weights as they were after certain rounds, to be measured later: raw float32 values on disk.

What a node trains with between two checkpoints is on nobody's disk otherwise: its own model, and
the live anchor with everything that it has heard so far. training/weights_file.py reads both.
"""

from collections.abc import Collection
from pathlib import Path

import torch

SNAPSHOTS = "snapshots"


class Snapshots:
    """DIRECTORY/snapshots/ROUND-own.f32 and ROUND-live.f32 of the rounds that were asked for."""

    def __init__(self, directory: Path, rounds: Collection[int]) -> None:
        self.rounds = frozenset(rounds)
        self._directory = directory / SNAPSHOTS

    def keep(self, round: int, *, own: torch.Tensor, live: torch.Tensor) -> None:
        """Write both, float32 [P]; a file is whole when it has its name."""
        self._directory.mkdir(exist_ok=True)
        for name, weights in (("own", own), ("live", live)):
            path = self._directory / f"{round}-{name}.f32"
            partial = path.with_suffix(".partial")
            weights.cpu().numpy().astype("<f4", copy=False).tofile(partial)
            partial.rename(path)
