"""Opening a checkpoint directory for inference: config.json, model.safetensors, tokenizer."""

import json
from pathlib import Path

from shoal.node.errors import DamagedError
from shoal.node.views import printable
from shoal.training.generate import sample
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import Tokenizer, load_tokenizer
from shoal.training.weights_file import read_weights


def open_model(directory: Path) -> tuple[FlatModel, Tokenizer]:
    """The model with the checkpoint's weights, on the CPU.

    Raises DamagedError or TrainingError, one line, for a directory that is not a checkpoint.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{directory} cannot be read as a checkpoint: {error}") from None
    model = FlatModel(build_model(config, seed=0))
    model.flat.copy_(read_weights(directory / "model.safetensors", model))
    return model, load_tokenizer(directory)


def continue_text(
    directory: Path, prompt: str, *, tokens: int, temperature: float, seed: int
) -> str:
    """The prompt and what the checkpoint's model says after it, safe to print on a terminal."""
    model, tokenizer = open_model(directory)
    text = sample(model, tokenizer, prompt, new_tokens=tokens, temperature=temperature, seed=seed)
    return printable(prompt + text)
