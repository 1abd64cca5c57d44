"""Certified checkpoints on disk: `checkpoints/<height>/`, one directory each.

genesis.json       the document that names the mesh and its first validators
epochs.bin         a list: what leads from those to the validators that signed this checkpoint
operation.bin      the operation that PBFT committed: cut, root, next parameters
certificate.bin    Q validators' commit signatures over it
settled.bin        which deltas are in or out for good, as of this height
manifest.bin       the addresses of the anchor's chunks (gossip/manifest.py)
chunks/<address>   the anchor, int32 little-endian, in pieces of 1 MiB named by their hash
deltas.bin         a list: the signed deltas of the cut, in its order; absent where not all are here
model.safetensors, config.json, tokenizer files: opens with transformers' from_pretrained
adapter_model.safetensors, adapter_config.json: instead of model.safetensors where the mesh trains
                   adapters; opens with peft's from_pretrained, on their base
checkpoint.json    the same facts for a person to read; nothing is trusted from it

A list is a count u32, then each item after its length u32, big-endian. `shoal verify` (verify.py)
proves such a directory to a stranger; docs/adr/0009 says why it looks like this.

A directory appears under its final name only when every byte in it is on the disk. What is read
back is checked against the certificate before it is used.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from shoal.consensus.fields import blob, u32
from shoal.consensus.records import MAX_OPERATION_BYTES
from shoal.gossip.anchor import Anchor
from shoal.gossip.chunks import split
from shoal.gossip.errors import GossipError
from shoal.gossip.manifest import Manifest, chunk_sizes, manifest_bytes
from shoal.gossip.schema import PARAMETERS_MAX, ModelSchema
from shoal.gossip.settled import SETTLED_BYTES_MAX
from shoal.node.durable import sync_directory
from shoal.node.errors import DamagedError

MODEL_WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
# What a checkpoint directory holds besides the tokenizer's files, which lie among these.
OWN_NAMES = frozenset(
    {
        "genesis.json",
        "epochs.bin",
        "operation.bin",
        "certificate.bin",
        "settled.bin",
        "manifest.bin",
        "chunks",
        "deltas.bin",
        MODEL_WEIGHTS,
        ADAPTER_WEIGHTS,
        ADAPTER_CONFIG,
        "config.json",
        "checkpoint.json",
        # Of the format before; a directory that holds one is refused.
        "anchor.bin",
    }
)
CERTIFICATE_BYTES_MAX = 4096
# An epoch record of 31 validators, 4096 bytes of parameters and a certificate fit twice.
LINK_BYTES_MAX = 16 * 1024


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The bytes that make a checkpoint; `links` lead from the genesis to its epoch, in order."""

    height: int
    operation: bytes
    certificate: bytes
    settled: bytes
    anchor: bytes
    links: tuple[bytes, ...] = ()


def model_file(schema: ModelSchema, weights: torch.Tensor, height: int, root: bytes) -> bytes:
    """Return a safetensors file of `weights` (float32 [P]) under the model's own names."""
    tensors: dict[str, torch.Tensor] = {}
    pieces = torch.split(weights, list(schema.layout.sizes))
    for tensor, piece in zip(schema.tensors, pieces, strict=True):
        tensors[tensor.name] = piece.view(tensor.shape)
    return save(
        tensors, metadata={"format": "pt", "shoal_height": str(height), "shoal_root": root.hex()}
    )


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_list(path: Path, items: Sequence[bytes]) -> None:
    with path.open("wb") as file:
        file.write(u32(len(items)))
        for item in items:
            file.write(blob(item))
        file.flush()
        os.fsync(file.fileno())


def read_list(path: Path, item_bytes_max: int) -> Iterator[bytes]:
    """Give the items of a list file one by one.

    Raises GossipError("bad-list") before it reads an item that is too long or not all there.
    """
    left = path.stat().st_size
    with path.open("rb") as file:

        def number() -> int:
            nonlocal left
            if left < 4:
                raise GossipError("bad-list", f"{path.name} ends too early")
            left -= 4
            return int.from_bytes(file.read(4), "big")

        for _ in range(number()):
            size = number()
            if size > min(left, item_bytes_max):
                raise GossipError("bad-list", f"an item of {size} bytes in {path.name}")
            left -= size
            yield file.read(size)
        if left:
            raise GossipError("bad-list", f"{left} bytes too many in {path.name}")


def _read(path: Path, bytes_max: int) -> bytes:
    size = path.stat().st_size
    if size > bytes_max:
        raise GossipError("too-large", f"{path.name} has {size} bytes")
    return path.read_bytes()


def _read_chunks(directory: Path) -> bytes:
    manifest = Manifest.from_bytes(
        _read(directory / "manifest.bin", manifest_bytes(PARAMETERS_MAX))
    )
    paths = [directory / "chunks" / address.hex() for address in manifest.addresses]
    # All lengths before the first byte: the manifest alone must not make us allocate anything.
    for path, size in zip(paths, chunk_sizes(manifest.total), strict=True):
        if path.stat().st_size != size:
            raise GossipError("bad-chunk", f"{path.name} has not {size} bytes")
    return b"".join(path.read_bytes() for path in paths)


def read_checkpoint(directory: Path, height: int) -> CheckpointFiles:
    """Return the bytes of one checkpoint directory, unchecked but of the lengths they must have.

    Raises DamagedError when some are missing, too long, or of an older Shoal's format.
    """
    if (directory / "anchor.bin").exists():
        raise DamagedError(
            f"the checkpoint {directory} is in the format of an older Shoal (anchor.bin); "
            "move that directory away and start again: it is fetched from the neighbours"
        )
    try:
        return CheckpointFiles(
            height=height,
            operation=_read(directory / "operation.bin", MAX_OPERATION_BYTES),
            certificate=_read(directory / "certificate.bin", CERTIFICATE_BYTES_MAX),
            settled=_read(directory / "settled.bin", SETTLED_BYTES_MAX),
            anchor=_read_chunks(directory),
            links=tuple(read_list(directory / "epochs.bin", LINK_BYTES_MAX)),
        )
    except OSError as error:
        why = f"cannot be read ({error.strerror}: {error.filename})"
    except GossipError as error:
        why = f"is damaged ({error})"
    raise DamagedError(
        f"the checkpoint {directory} {why}; move that directory away and start again: "
        "it is fetched from the neighbours"
    )


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
        genesis: bytes,
        deltas: Sequence[bytes] | None,
        model_config: Mapping[str, Any],
        tokenizer: Mapping[str, bytes],
        facts: Mapping[str, Any],
        adapter_config: bytes | None = None,
    ) -> None:
        """Put a checkpoint on the disk, whole or not at all. What is old goes in holdings.py.

        genesis: the document; deltas: the blobs of the cut in its order, None when not all of
        them are here; adapter_config: where the anchor is one of adapters.
        """
        final = self.path(files.height)
        if final.exists():
            return
        temporary = self._directory / f".{files.height}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "chunks").mkdir(parents=True)
        manifest = Manifest.of(anchor)
        for address, piece in zip(manifest.addresses, split(files.anchor), strict=True):
            _write(temporary / "chunks" / address.hex(), piece)
        contents = {
            "genesis.json": genesis,
            "operation.bin": files.operation,
            "certificate.bin": files.certificate,
            "settled.bin": files.settled,
            "manifest.bin": manifest.to_bytes(),
            MODEL_WEIGHTS if adapter_config is None else ADAPTER_WEIGHTS: model_file(
                anchor.schema, anchor.to_weights(), files.height, manifest.root
            ),
            **({} if adapter_config is None else {ADAPTER_CONFIG: adapter_config}),
            "config.json": (json.dumps(dict(model_config), indent=2) + "\n").encode(),
            "checkpoint.json": (json.dumps(dict(facts), indent=2) + "\n").encode(),
            **tokenizer,
        }
        for name, data in contents.items():
            _write(temporary / name, data)
        _write_list(temporary / "epochs.bin", files.links)
        if deltas is not None:
            _write_list(temporary / "deltas.bin", deltas)
        sync_directory(temporary / "chunks")
        sync_directory(temporary)
        temporary.rename(final)
        sync_directory(self._directory)

    def read(self, height: int) -> CheckpointFiles:
        """Return a checkpoint's bytes, unchecked; raises DamagedError as `read_checkpoint`."""
        return read_checkpoint(self.path(height), height)
