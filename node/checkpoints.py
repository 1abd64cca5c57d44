"""Certified checkpoints on disk: `checkpoints/<height>/`, one directory each.

anchor.bin         the shared model, int32 little-endian: what the Merkle root is of
operation.bin      the operation that PBFT committed: cut, root, next parameters
certificate.bin    Q validators' commit signatures over it
settled.bin        which deltas are in or out for good, as of this height
model.safetensors, config.json, tokenizer files: opens with transformers' from_pretrained
checkpoint.json    the same facts for a person to read; nothing is trusted from it

A directory appears under its final name only when every byte in it is on the disk. What is read
back is checked against the certificate before it is used.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from shoal.gossip.anchor import Anchor
from shoal.gossip.schema import ModelSchema
from shoal.node.errors import DamagedError


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The bytes that make a checkpoint, as they lie on disk."""

    height: int
    operation: bytes
    certificate: bytes
    settled: bytes
    anchor: bytes


def model_file(schema: ModelSchema, weights: torch.Tensor, height: int, root: bytes) -> bytes:
    """Return a safetensors file of `weights` (float32 [P]) under the model's own names."""
    tensors: dict[str, torch.Tensor] = {}
    pieces = torch.split(weights, list(schema.layout.sizes))
    for tensor, piece in zip(schema.tensors, pieces, strict=True):
        tensors[tensor.name] = piece.view(tensor.shape)
    return save(
        tensors, metadata={"format": "pt", "shoal_height": str(height), "shoal_root": root.hex()}
    )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointStore:
    """The checkpoint directories of one node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)

    @property
    def directory(self) -> Path:
        """Where they lie."""
        return self._directory

    def path(self, height: int) -> Path:
        """Return where the checkpoint of `height` lies, or would."""
        return self._directory / str(height)

    def heights(self) -> list[int]:
        """Return the heights that are here, ascending."""
        return sorted(
            int(entry.name)
            for entry in self._directory.iterdir()
            if entry.is_dir() and entry.name.isdecimal()
        )

    def write(
        self,
        files: CheckpointFiles,
        anchor: Anchor,
        *,
        root: bytes,
        model_config: Mapping[str, Any],
        tokenizer: Mapping[str, bytes],
        facts: Mapping[str, Any],
    ) -> None:
        """Put a checkpoint on the disk, whole or not at all. What is old goes in holdings.py."""
        final = self.path(files.height)
        if final.exists():
            return
        temporary = self._directory / f".{files.height}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        contents = {
            "anchor.bin": files.anchor,
            "operation.bin": files.operation,
            "certificate.bin": files.certificate,
            "settled.bin": files.settled,
            "model.safetensors": model_file(anchor.schema, anchor.to_weights(), files.height, root),
            "config.json": (json.dumps(dict(model_config), indent=2) + "\n").encode(),
            "checkpoint.json": (json.dumps(dict(facts), indent=2) + "\n").encode(),
            **tokenizer,
        }
        for name, data in contents.items():
            _write(temporary / name, data)
        _sync_directory(temporary)
        temporary.rename(final)
        _sync_directory(self._directory)

    def read(self, height: int) -> CheckpointFiles:
        """Return a checkpoint's bytes, unchecked; raises DamagedError when some are missing."""
        directory = self.path(height)
        try:
            return CheckpointFiles(
                height=height,
                operation=(directory / "operation.bin").read_bytes(),
                certificate=(directory / "certificate.bin").read_bytes(),
                settled=(directory / "settled.bin").read_bytes(),
                anchor=(directory / "anchor.bin").read_bytes(),
            )
        except OSError as error:
            raise DamagedError(
                f"the checkpoint {directory} cannot be read ({error.strerror}: {error.filename}); "
                "move that directory away and start again: it is fetched from the neighbours"
            ) from None
