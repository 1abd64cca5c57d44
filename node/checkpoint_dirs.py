"""Finding a node's certified checkpoints on disk: DIR/checkpoints/<height>/."""

from pathlib import Path

from shoal.node.errors import UserError

_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def checkpoint_directories(node: Path) -> dict[int, Path]:
    """Every complete checkpoint of a node's directory by height, in ascending order."""
    found = {
        int(entry.name): entry
        for entry in (node / "checkpoints").glob("*")
        if entry.name.isascii() and entry.name.isdigit() and _has_weights(entry)
    }
    return dict(sorted(found.items()))


def newest_checkpoint(directory: Path) -> Path:
    """The newest checkpoint of a node's directory, or the directory itself when it is one.

    Raises UserError when there is none.
    """
    if _has_weights(directory):
        return directory
    found = checkpoint_directories(directory)
    if not found:
        raise UserError(
            f"{directory} holds no checkpoint; name a node's directory (after its first "
            "checkpoint) or one of its checkpoints/HEIGHT"
        )
    return found[max(found)]


def _has_weights(directory: Path) -> bool:
    return any((directory / name).is_file() for name in _WEIGHTS)
