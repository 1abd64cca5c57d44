"""A pretrained model in a directory, as small as a test needs it, and adapters of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.training.adapters import Lora, base_files
from shoal.training.model import FlatModel, build_model
from shoal.training.tokenizer import ByteTokenizer
from shoal.training.weights_file import write_weights
from tests.training.worker_process import TINY_MODEL

ADAPTERS = {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}


def write_base(
    directory: Path, config: Mapping[str, Any] = TINY_MODEL, *, seed: int = 5
) -> FlatModel:
    """Write config.json, weights and tokenizer; returns the model."""
    ByteTokenizer().save(directory)
    (directory / "config.json").write_text(json.dumps(config))
    model = FlatModel(build_model(config, seed))
    write_weights(directory / "model.safetensors", model, model.flat)
    return model


def adapters_of(directory: Path, **changes: Any) -> Lora:
    """Adapters for the base in a directory."""
    files = base_files(directory)
    return Lora.from_json({**ADAPTERS, "base": "tiny", "base_files": files, **changes})
