"""`shoal own`: a node's own model, as a directory that opens like a checkpoint."""

import json
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from shoal.node.average import appearing_whole, copy_what_is_no_weights, require_new
from shoal.node.checkpoint_dirs import checkpoint_directories
from shoal.node.checkpoints import ADAPTER_WEIGHTS, MODEL_WEIGHTS
from shoal.node.errors import DamagedError, UserError
from shoal.node.own_mean import OWN, ROUND, ROUNDS

FACTS = "own.json"


def own_model(directory: Path, target: Path) -> dict[str, object]:
    """Write a node's own model into a directory that opens like a checkpoint; returns own.json.

    target: a directory that does not exist yet. Raises UserError where it does, where the node has
    kept no mean of its weights, or has no checkpoint to say what model they are of.
    """
    require_new(target)
    if not (directory / OWN).is_file():
        raise UserError(
            f"{directory} holds no {OWN}; set train.own_mean_rounds (8, say) in its node.toml, and "
            "let it train until its next checkpoint"
        )
    checkpoints = list(checkpoint_directories(directory).values())
    if not checkpoints:
        raise UserError(f"{directory} holds no whole checkpoint yet; wait for its first")
    with appearing_whole(target) as made:
        genesis = copy_what_is_no_weights(checkpoints[-1], made)
        weights = made / (MODEL_WEIGHTS if genesis.lora is None else ADAPTER_WEIGHTS)
        shutil.copyfile(directory / OWN, weights)
        facts = {"mesh": genesis.mesh_id.hex(), **_facts(weights)}
        (made / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def _facts(path: Path) -> dict[str, object]:
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata()
        return {name: int(said[name]) for name in (ROUND, ROUNDS)}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
