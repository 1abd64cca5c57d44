"""A checkpoint in pieces on disk: some or all of its chunks, each a file named by its address.

    operation.bin, certificate.bin, settled.bin, epochs.bin   what it is, and the proof
    manifest.bin                                              the addresses of its chunks, in order
    chunks/<address in hexadecimal>                           up to 1 MiB each
    deltas.bin                                                the deltas of its cut

A file appears under its final name only when every byte of it is on the disk, so what a killed
process leaves behind is whole pieces and nothing else. Everything here blocks: call it from a
thread.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from shoal.gossip.chunks import (
    ADDRESS_BYTES,
    chunk_address,
    chunk_count,
    chunk_size,
)
from shoal.gossip.manifest import HEADER
from shoal.node.bulk_wire import Description
from shoal.node.durable import TEMPORARY, write_durably
from shoal.node.errors import PeerError

_PARTS = ("operation", "certificate", "settled")
_ADDRESS = re.compile(r"[0-9a-f]{64}")


def _read_parts(path: Path) -> tuple[bytes, bytes, bytes]:
    operation, certificate, settled = ((path / f"{name}.bin").read_bytes() for name in _PARTS)
    return operation, certificate, settled


def sizes_of(described: Description) -> dict[bytes, int]:
    """How many bytes each chunk has, by address, in the order of the manifest."""
    return {
        address: chunk_size(described.anchor_bytes, index)
        for index, address in enumerate(described.addresses)
    }


class PieceDirectory:
    """One height's pieces."""

    def __init__(self, path: Path, height: int, anchor_bytes: int) -> None:
        """anchor_bytes: the length of an anchor of this mesh."""
        self.path = path
        self.height = height
        self._anchor_bytes = anchor_bytes
        self._chunks = path / "chunks"

    @property
    def delta_log(self) -> Path:
        """Where the height's delta log lies, if it is here."""
        return self.path / "deltas.bin"

    def describe(self, described: Description) -> None:
        """Write what the checkpoint is; the manifest last, so that it stands for all of it."""
        self._chunks.mkdir(parents=True, exist_ok=True)
        for name in _PARTS:
            write_durably(self.path / f"{name}.bin", getattr(described, name))
        write_durably(self.path / "epochs.bin", described.epochs)
        write_durably(self.path / "manifest.bin", b"".join(described.addresses))

    def description(self) -> Description | None:
        """Return what was written by `describe`, None where that is not here or not whole."""
        try:
            manifest = (self.path / "manifest.bin").read_bytes()
            operation, certificate, settled = _read_parts(self.path)
            epochs = (self.path / "epochs.bin").read_bytes()
        except FileNotFoundError:
            return None
        # A whole checkpoint's manifest has a header (gossip/manifest.py); the addresses end it.
        size = ADDRESS_BYTES * chunk_count(self._anchor_bytes)
        if len(manifest) not in (size, HEADER.size + size):
            return None
        starts = range(len(manifest) - size, len(manifest), ADDRESS_BYTES)
        addresses = tuple(manifest[at : at + ADDRESS_BYTES] for at in starts)
        return Description(
            self.height, operation, certificate, settled, self._anchor_bytes, addresses, epochs
        )

    def addresses(self) -> frozenset[bytes]:
        """Return the chunks that are here."""
        try:
            names = [entry.name for entry in self._chunks.iterdir()]
        except FileNotFoundError:
            return frozenset()
        return frozenset(bytes.fromhex(name) for name in names if _ADDRESS.fullmatch(name))

    def read(self, address: bytes) -> bytes | None:
        """Return a chunk as it lies here, unchecked; None where it is not here."""
        try:
            return (self._chunks / address.hex()).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, address: bytes, data: bytes) -> None:
        """Keep a chunk whose address has been checked."""
        self._chunks.mkdir(parents=True, exist_ok=True)
        write_durably(self._chunks / address.hex(), data)

    def remove(self, address: bytes) -> None:
        """Forget a chunk."""
        (self._chunks / address.hex()).unlink(missing_ok=True)

    def verified(self, sizes: Mapping[bytes, int]) -> frozenset[bytes]:
        """Return which of the chunks `sizes` are here and sound; the others are removed.

        Reads one chunk at a time, and none that is longer than it should be.
        """
        sound = set()
        if self._chunks.is_dir():
            for leftover in self._chunks.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        for address in self.addresses():
            path = self._chunks / address.hex()
            fits = path.stat().st_size == sizes.get(address)
            if fits and chunk_address(path.read_bytes()) == address:
                sound.add(address)
            else:
                path.unlink()
        return frozenset(sound)


def assemble(source: PieceDirectory) -> tuple[Description, bytes]:
    """Return a checkpoint of which every chunk is here: what it is, and its anchor's bytes.

    Raises PeerError where some of it has gone away.
    """
    described = source.description()
    if described is None:
        raise PeerError("checkpoint-incomplete", "it is not there any more")
    chunks = [source.read(address) for address in described.addresses]
    if None in chunks:
        raise PeerError("checkpoint-incomplete", f"chunk {chunks.index(None)} is not there")
    return described, b"".join(chunk for chunk in chunks if chunk is not None)
