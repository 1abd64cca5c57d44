"""Opening a checkpoint directory: configuration, weights or adapters, tokenizer; or a task."""

import json
from pathlib import Path
from typing import Any

import torch

from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MODEL_WEIGHTS
from shoal.node.config import CONFIG_NAME, load_settings
from shoal.node.errors import DamagedError, PeerError, UserError
from shoal.node.genesis import parse_document
from shoal.node.views import printable
from shoal.training.adapters import adapted_model, require_base
from shoal.training.generate import sample
from shoal.training.model import FlatModel, build_model
from shoal.training.task_name import TaskName
from shoal.training.task_training import open_task
from shoal.training.tokenizer import Tokenizer, load_tokenizer
from shoal.training.weights_file import read_weights


def open_model(directory: Path, base: Path | None = None) -> tuple[FlatModel, Tokenizer]:
    """The language model with the checkpoint's weights, on the CPU.

    base: directory of the model that a checkpoint of adapters is for.
    Raises DamagedError or TrainingError, one line, for a directory that is not a checkpoint, and
    for a base that is not the one that its mesh has agreed on; UserError where it makes no text.
    """
    lora, config = None, _configuration(directory)
    if (task := TaskName.of(config)) is not None:
        raise UserError(
            f'{directory} is of the task "{task.name}", which makes no text; open it with '
            "shoal.load(DIR) in Python"
        )
    try:
        if (directory / ADAPTER_CONFIG).exists():
            lora = parse_document((directory / "genesis.json").read_bytes()).lora
    except (OSError, PeerError) as error:
        raise _no_checkpoint(directory, error) from None
    if lora is None:
        name, model = MODEL_WEIGHTS, FlatModel(build_model(config, seed=0))
    else:
        checked = require_base(lora, None if base is None else str(base))
        name, model = ADAPTER_WEIGHTS, FlatModel(adapted_model(config, lora, checked, seed=0))
    model.flat.copy_(read_weights(directory / name, model))
    return model, load_tokenizer(directory)


def load(directory: str | Path, task: str | None = None) -> torch.nn.Module:
    """The module of a task's checkpoint with its weights, on the CPU, in evaluation mode.

    directory: of a checkpoint, or of a node for its newest. task: the module:Class that may be
    imported for it, if no installed package names the task.
    Raises UserError or TrainingError, one line, where it is no such checkpoint, or where the task
    is missing here or another version.
    """
    place = newest_checkpoint(Path(directory))
    config = _configuration(place)
    if TaskName.of(config) is None:
        raise UserError(f"{place} is a language model; open it with transformers")
    return open_task(place, config, task).module


def _configuration(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json is not a JSON object")
    except (OSError, ValueError) as error:
        raise _no_checkpoint(directory, error) from None
    return config


def _no_checkpoint(directory: Path, error: Exception) -> DamagedError:
    return DamagedError(f"{directory} cannot be read as a checkpoint: {error}")


def own_base(directory: Path, named: Path | None) -> Path | None:
    """The base that is named, or else the one in the node's own settings, where there are any."""
    if named is not None or not (directory / CONFIG_NAME).exists():
        return named
    setting = load_settings(directory).train.base
    return Path(setting) if setting else None


def continue_text(
    directory: Path,
    prompt: str,
    *,
    base: Path | None,
    tokens: int | None,
    temperature: float,
    seed: int,
) -> str:
    """The prompt and what the checkpoint's model says after it, safe to print on a terminal."""
    model, tokenizer = open_model(directory, base)
    text = sample(model, tokenizer, prompt, new_tokens=tokens, temperature=temperature, seed=seed)
    return printable(prompt + text)
