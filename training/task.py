"""What a mesh can train that is not text: a user's own module, data and loss.

A task is a class that its users install; a mesh names it and never carries it. All that is asked of
it stands below. Everything around it (rounds, deltas, checkpoints, proofs) is the same as for text,
with one example for one token: `batch`, `warmup_tokens` and `schedule_tokens` count examples.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a node has come in its data: which batch is the next one.

    A round's number goes on where a node that was restarted had stopped, so there is nothing else
    to keep: what is drawn must follow from these three alone.
    """

    seed: int
    round: int
    step: int


class Task(ABC):
    """A module, a loss and how to read data for them.

    All members of a mesh run the same class on data of their own. Errors that a user can mend are
    ValueErrors with one line; nodes show it.
    """

    version: ClassVar[str] = ""
    """What members compare: another version is another task. "" is the hash of the source file."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: what the mesh was founded with (`shoal init --model`), a JSON object.

        It comes from whoever founded the mesh, so check what you take memory for.
        """
        self.config = dict(config)

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """Return the module with fresh weights, drawn from torch's own random state.

        Its `state_dict` must be what is trained and nothing else: members share no more. So use
        GroupNorm or LayerNorm in the place of BatchNorm, and `register_buffer(persistent=False)`
        for constants.
        """

    @abstractmethod
    def read(self, source: str) -> tuple[Dataset[Any], Dataset[Any]]:
        """Return the examples to train on, and those that are only ever measured.

        source: `data` of this node's settings: a path, or builtin:I/N for shard I of N, if the
        task has data of its own. Both have a length, and give examples by number.
        """

    @abstractmethod
    def loss(self, module: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the mean loss of the examples in `batch`, a scalar with a gradient.

        batch: what `collate` made, on the module's device.
        """

    def evaluate(self, module: torch.nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        """Return what held-out examples say of a module: "loss", and whatever else is measured.

        module: in evaluation mode, without gradients; batches: equally large. Here: the mean loss.
        """
        losses = [float(self.loss(module, batch)) for batch in batches]
        return {"loss": math.fsum(losses) / len(losses)}

    def choose(self, count: int, cursor: Cursor, size: int) -> Sequence[int]:
        """Return which `size` of `count` examples the batch at `cursor` has; here: any, at random.

        Follows from its arguments alone.
        """
        random = np.random.default_rng((cursor.seed, cursor.round, cursor.step))
        return [int(number) for number in random.integers(0, count, size)]

    def collate(self, examples: Sequence[Any]) -> Any:
        """Return examples as one batch: tensors, or tuples, lists and dictionaries of them."""
        return default_collate(list(examples))
