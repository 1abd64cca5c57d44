"""A task in the places of text: its module as a flat model, its examples as a source.

What trains text (session.py, local_steps.py) then trains a task without knowing of it.
"""

import math
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from shoal.training.device import pick_device
from shoal.training.errors import TrainingError
from shoal.training.installed_tasks import blaming, installed_task
from shoal.training.model import PARAMETERS_MAX, FlatModel
from shoal.training.task import Cursor, Task
from shoal.training.weights_file import read_weights

WEIGHTS = "model.safetensors"


class TaskModel(FlatModel):
    """A task's module; its loss is what the task says."""

    def __init__(self, task: Task, seed: int, device: torch.device | None = None) -> None:
        """Build the module with weights drawn from `seed`, which the caller's random state is
        spared. Raises TrainingError where it cannot be shared by a mesh."""
        self.task = task
        with torch.random.fork_rng(devices=[]), blaming(type(task).__name__):
            torch.manual_seed(seed)
            module = task.build()
        _require_shared(module)
        super().__init__(module, device)
        # The task hides tokens, if any are hidden.
        self.mask_token = None

    def loss(self, windows: Any, masks: np.random.Generator | None = None) -> torch.Tensor:
        """Return the task's loss of one of its batches (`windows`), a scalar with a gradient."""
        with (
            blaming(type(self.task).__name__),
            torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"),
        ):
            loss = self.task.loss(self.module, moved(windows, self.device))
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            raise TrainingError(f"the loss of {type(self.task).__name__} is no scalar tensor")
        return loss

    def share_of_loss(
        self, windows: Any, masks: np.random.Generator | None, rank: int, processes: int
    ) -> torch.Tensor:
        """Return the loss: a rank's Examples give it no more than its part of a batch."""
        del rank, processes
        return self.loss(windows, masks)

    def measure(self, examples: "Examples", *, batches: int, batch: int) -> dict[str, float]:
        """Return what the task measures on held-out examples; raises TrainingError."""
        with blaming(type(self.task).__name__):
            found = self.task.evaluate(self.module, examples.to_measure(batches, batch, self))
            values = {str(name): float(value) for name, value in dict(found).items()}
        if not math.isfinite(values.get("loss", math.nan)):
            raise TrainingError("the held-out loss is not a number: the weights are broken")
        return {name: value for name, value in values.items() if math.isfinite(value)}


@dataclass(frozen=True, slots=True)
class Examples:
    """One source of a task: examples to train on, and others to measure."""

    task: Task
    source: str
    train: Sized
    held_out: Sized
    # Which part of each batch it gives: every so manieth example, from this one on.
    rank: int = 0
    processes: int = 1

    @classmethod
    def read(cls, task: Task, source: str) -> "Examples":
        """Let the task read it; raises TrainingError, also where there is nothing in it."""
        with blaming(type(task).__name__):
            train, held_out = task.read(source)
            sized = cast(Sized, train), cast(Sized, held_out)
            if not all(len(part) for part in sized):
                raise TrainingError(f"{source}: no examples to train on, or none to hold out")
        return cls(task, source, *sized)

    def batch(self, *, seed: int, round: int, step: int, batch: int, sequence: int) -> Any:
        """Return the batch at (seed, round, step) as the task collates it."""
        del sequence
        with blaming(type(self.task).__name__):
            numbers = self.task.choose(len(self.train), Cursor(seed, round, step), batch)
            return self._collated(self.train, numbers[self.rank :: self.processes])

    def to_measure(self, batches: int, batch: int, model: FlatModel) -> Iterator[Any]:
        """Give held-out examples, evenly spread, in at most `batches` equally large batches."""
        count = min(batches * batch, len(self.held_out))
        count -= count % min(batch, count)
        numbers = np.linspace(0, len(self.held_out) - 1, count).astype(np.int64)
        for part in np.split(numbers, range(batch, count, batch)):
            yield moved(self._collated(self.held_out, part.tolist()), model.device)

    def _collated(self, examples: Sized, numbers: Any) -> Any:
        return self.task.collate([cast(Dataset[Any], examples)[number] for number in numbers])


def open_task(directory: Path, config: Mapping[str, Any], named: str | None = None) -> TaskModel:
    """Return the task of a checkpoint with its weights, on the CPU; raises TrainingError.

    config: of the checkpoint. named: as in `installed_task`.
    """
    model = TaskModel(installed_task(config, named), seed=0, device=pick_device("cpu"))
    model.flat.copy_(read_weights(directory / WEIGHTS, model))
    model.module.eval()
    return model


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on `device`, whatever holds them."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def _require_shared(module: object) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TrainingError("a task's build() must return a torch.nn.Module")
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.nn.Parameter) or not value.requires_grad:
            raise TrainingError(
                f"the module holds {name}, which is not trained, so members would not share it; "
                "use GroupNorm for BatchNorm, and register_buffer(persistent=False) for constants"
            )
    size = sum(parameter.numel() for parameter in module.parameters())
    if not 1 <= size <= PARAMETERS_MAX:
        raise TrainingError(f"{size} parameters to train; 1 to {PARAMETERS_MAX} are meant")
