"""Small inputs that would become large, or slow, if nobody stopped them: one process, each in a
child of its own, measured.

    python -m tests.abuse.bombs

Prints one JSON line per bomb: how it was refused, the milliseconds of CPU that took (the least of
three, since the machine has other work), and by how many MiB the memory's high-water mark rose.
"""

import gc
import json
import os
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import zstandard

from shoal.compression.codec import decode, encode
from shoal.compression.frame import HEADER, FrameError
from shoal.compression.streams import decompress
from shoal.consensus.epochs import split_links
from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import decode as decode_message
from shoal.gossip.book import DeltaBook
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES, Delta, make_delta
from shoal.gossip.errors import GossipError
from shoal.gossip.manifest import HEADER as MANIFEST_HEADER
from shoal.gossip.manifest import Manifest
from shoal.gossip.settled import FIXED, SettledState
from shoal.node.bulk_wire import CHUNKS, FETCHES
from shoal.node.checkpoints import read_list
from shoal.node.errors import PeerError, UserError
from shoal.node.genesis import parse_document
from shoal.node.inspect_client import STATUSES
from shoal.node.verify_formats import parse_genesis
from shoal.node.wire import FRAMES
from shoal.training.errors import TrainingError
from shoal.training.model import FlatModel
from shoal.training.weights_file import read_weights
from tests.gossip.builders import MESH, SCHEMA, epoch, hashed_delta, member

MIB = 1 << 20
GIB = 1 << 30
TRIES = 3
REFUSALS = (PeerError, GossipError, FrameError, ConsensusError, TrainingError, UserError)


@dataclass(frozen=True, slots=True)
class Bomb:
    """make: the input, before anything is measured; light: what reads it and must refuse it, or, if
    `harmless`, must simply not take long."""

    make: Callable[[], bytes]
    light: Callable[[bytes], object]
    harmless: bool = False


def _field(tag: int, content: bytes) -> bytes:
    size, rest = bytearray(), len(content)
    while rest > 0x7F:
        size.append(rest & 0x7F | 0x80)
        rest >>= 7
    size.append(rest)
    return bytes([tag]) + bytes(size) + content


def _zeros(size: int, *, level: int = 19) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(bytes(size))


def _declares(size: int) -> bytes:
    """A zstd frame of one empty block that says its content has `size` bytes."""
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, size) + b"\x01\x00\x00"


def _with_gaps(gaps: bytes) -> bytes:
    """An honest frame of a delta but for its stream of gaps."""
    honest = encode(hashed_delta("bomb", kept_per_chunk=64))
    version, zero, kept, tensors, gap_bytes, magnitude_bytes = HEADER.unpack_from(honest)
    counts = honest.index(zstandard.FRAME_HEADER)
    body = honest[counts + gap_bytes : -4]
    head = HEADER.pack(version, zero, kept, tensors, len(gaps), magnitude_bytes)
    frame = head + honest[HEADER.size : counts] + gaps + body
    return frame + struct.pack("<I", zlib.crc32(frame))


def _tensors(count: int) -> bytes:
    """A safetensors file of empty tensors."""
    entry = '"t{:06}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    header = "{" + ",".join(entry.format(number) for number in range(count)) + "}"
    return len(header).to_bytes(8, "little") + header.encode()


def _weights(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.safetensors"
        path.write_bytes(data)
        read_weights(path, _model())


_models: list[FlatModel] = []


def _model() -> FlatModel:
    if not _models:
        _models.append(FlatModel(torch.nn.Linear(3, 2)))
    return _models[0]


def _listed(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "deltas.bin"
        path.write_bytes(data)
        for _ in read_list(path, MIB):
            pass


def _genesis(document: bytes) -> None:
    """Both readers refuse it; the second is the one whose refusal counts."""
    try:
        parse_document(document)
    except PeerError:
        parse_genesis(document)


def _strangers() -> bytes:
    bitmap = b"\x1a\x80\x01" + b"\xff" * 128
    entries = (
        _field(0x12, _field(0x0A, number.to_bytes(32, "big")) + bitmap) for number in range(1024)
    )
    return _field(0x22, b"".join(entries))


def _summary(data: bytes) -> None:
    summary = FRAMES.read(data).summary
    book = DeltaBook(MESH, SettledState.genesis(epoch(0, 4), staleness=2))
    book.missing({each.member: (each.contiguous, each.bitmap) for each in summary.members})


def _a_delta_of(frame_bytes: int) -> bytes:
    blob = make_delta(
        b"frame",
        mesh_id=MESH,
        sender=member(1),
        sequence=1,
        height=0,
        steps=1,
        tokens=1,
        sign=lambda message: bytes(64),
    ).to_bytes()
    at = BLOB_OVERHEAD_BYTES - 64 - 32 - 4
    return blob[:at] + frame_bytes.to_bytes(4, "big") + blob[at + 4 :]


LAYOUT = SCHEMA.layout
EMPTY = 4 * MIB // 2 - 8
BOMBS = {
    "zstd 32,000:1": Bomb(
        lambda: _zeros(256 * MIB, level=3), lambda d: decompress(d, at_least=1, at_most=MIB)
    ),
    "zstd 32,000:1 in a delta": Bomb(
        lambda: _with_gaps(_zeros(256 * MIB, level=3)), lambda d: decode(d, LAYOUT)
    ),
    "zstd of more than it declares": Bomb(
        lambda: _declares(64)[:-3] + _zeros(64 * MIB, level=3)[9:],
        lambda d: decompress(d, at_least=1, at_most=MIB),
    ),
    "zstd that declares 1 GiB": Bomb(
        lambda: _declares(GIB), lambda d: decompress(d, at_least=1, at_most=MIB)
    ),
    "a delta that declares 1 GiB": Bomb(
        lambda: _with_gaps(_declares(GIB)), lambda d: decode(d, LAYOUT)
    ),
    "a header of a delta that declares 1 GiB": Bomb(
        lambda: _a_delta_of(GIB), lambda d: Delta.from_bytes(d, frame_bytes_max=2 * GIB)
    ),
    "4 MiB of empty announcements": Bomb(lambda: _field(0x1A, b"\x0a\x00" * EMPTY), FRAMES.read),
    "2 MiB of empty announcements": Bomb(
        lambda: _field(0x1A, b"\x0a\x00" * (EMPTY // 2)), FRAMES.read
    ),
    "2 MiB of empty summaries": Bomb(lambda: _field(0x22, b"\x12\x00" * (EMPTY // 2)), FRAMES.read),
    "2 MiB of empty consensus messages": Bomb(lambda: b"\x2a\x00" * (EMPTY // 2), FRAMES.read),
    "2 MiB of unknown fields": Bomb(lambda: b"\x7a\x00" * (EMPTY // 2), FRAMES.read),
    "4 MiB of empty files of a genesis": Bomb(
        lambda: _field(0x1A, b"\x1a\x00" * EMPTY), CHUNKS.read
    ),
    "4 MiB of a request said again": Bomb(lambda: b"\x12\x00" * EMPTY, FETCHES.read),
    "4 MiB of empty peers in a status": Bomb(lambda: b"\x6a\x00" * EMPTY, STATUSES.read),
    "a summary of a million numbers of strangers": Bomb(_strangers, _summary, harmless=True),
    "200,000 tensors": Bomb(lambda: _tensors(200_000), _weights),
    "15,000 tensors": Bomb(lambda: _tensors(15_000), _weights),
    "a file whose header declares 1 GiB": Bomb(lambda: GIB.to_bytes(8, "little") + b"{", _weights),
    "a genesis of 4 MiB of empty lists": Bomb(lambda: b"[" + b"[]," * (EMPTY * 2 // 3), _genesis),
    "a genesis of 1 MiB of empty lists": Bomb(
        lambda: b'{"format":1,"schema":[' + b"[]," * (MIB // 3 - 20) + b"[]]}", _genesis
    ),
    "a genesis nested a million deep": Bomb(lambda: b"[" * (MIB - 1), _genesis),
    "a message whose operation declares 1 GiB": Bomb(
        lambda: b"\x13" + GIB.to_bytes(4, "big") + bytes(100), decode_message
    ),
    "a million epochs": Bomb(lambda: (MIB).to_bytes(4, "big") + bytes(4 * MIB - 4), split_links),
    "60,000 empty epochs": Bomb(lambda: (60_000).to_bytes(4, "big") + bytes(240_001), split_links),
    "a manifest of 2^32 chunks": Bomb(
        lambda: MANIFEST_HEADER.pack(
            b"SHOAL-MANIFEST", 1, bytes(32), 1 << 36, bytes(32), (1 << 32) - 1
        ),
        Manifest.from_bytes,
    ),
    "a settled state of everything at once": Bomb(
        lambda: FIXED.pack(1, 16, 255, 255, 65535) + bytes(MIB), SettledState.from_bytes
    ),
    "a list of 2^32 deltas": Bomb(lambda: b"\xff" * 4 + bytes(4), _listed),
}


def _memory_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def measure(name: str) -> dict[str, object]:
    """Light one bomb in this process."""
    bomb = BOMBS[name]
    data = bomb.make()
    _model()
    gc.collect()
    # The high-water mark starts from what is in use now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory_mib("VmRSS")
    refused, times = "", []
    for _ in range(TRIES):
        started = time.process_time()
        try:
            bomb.light(data)
        except REFUSALS as error:
            refused = f"{type(error).__name__}: {error}"[:100]
        times.append(1000 * (time.process_time() - started))
    return {
        "bomb": name,
        "bytes": len(data),
        "refused": refused,
        "harmless": bomb.harmless,
        "cpu_ms": round(min(times), 2),
        "growth_mib": round(_memory_mib("VmHWM") - before, 1),
    }


def main() -> None:
    """Light them all, each in a child that starts from the same memory."""
    _model()
    # Whatever fails to stop a bomb ends the child, not the machine.
    resource.setrlimit(resource.RLIMIT_AS, (16 * GIB, 16 * GIB))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    for name in BOMBS:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            print(json.dumps(measure(name)), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
