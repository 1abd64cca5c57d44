"""The envelope of a delta on the wire: fixed fields, limits and checksum (README.md, one page).

Everything a receiver wants to know before it spends memory stands uncompressed in front: the
density, the two magnitudes and the code counts of every tensor, and the length of each compressed
stream. Parsing allocates nothing but the few bytes per tensor that the local layout already calls
for, and never decompresses. What the layout implies (how many tensors, how many kept values) is
not sent, or, where sent, must agree.
"""

import math
import zlib
from dataclasses import dataclass
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from shoal.compression.layout import CHUNK, Layout

VERSION = 1
# version, zero, kept per chunk, tensors, bytes of the gap stream, bytes of the magnitude plane
HEADER = Struct("<BBHIII")
CHECKSUM = Struct("<I")


class FrameError(ValueError):
    """A peer's frame breaks the format; `reason` is a stable word for counters and logs."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A checked frame whose streams are still compressed.

    centroids: float32 [T, 4], ascending (-hi, -lo, +lo, +hi); counts: int64 [T, 4], how many kept
    values of the tensor carry each code; body: gap stream, magnitude plane and sign plane.
    """

    kept_per_chunk: int
    centroids: NDArray[np.float32]
    counts: NDArray[np.int64]
    gap_bytes: int
    magnitude_bytes: int
    body: bytes


def pack_frame(frame: Frame, layout: Layout) -> bytes:
    """Frame -> bytes, the inverse of `parse_frame`."""
    kept = layout.kept_per_tensor(frame.kept_per_chunk)
    assert np.array_equal(frame.counts.sum(axis=1), kept), "counts must add up to the kept values"
    magnitudes = frame.centroids[:, 2:].astype("<f4")
    mirrored = np.concatenate((-magnitudes[:, ::-1], magnitudes), axis=1)
    assert np.array_equal(mirrored, frame.centroids), "centroids must mirror each other"
    covered = b"".join(
        (
            HEADER.pack(
                VERSION,
                0,
                frame.kept_per_chunk,
                len(layout.sizes),
                frame.gap_bytes,
                frame.magnitude_bytes,
            ),
            magnitudes.tobytes(),
            _pack_counts(frame.counts, kept),
            frame.body,
        )
    )
    return covered + CHECKSUM.pack(zlib.crc32(covered))


def parse_frame(data: bytes, layout: Layout, *, kept_per_chunk: int | None = None) -> Frame:
    """Check everything that can be checked without decompressing.

    `kept_per_chunk` is the density the epoch prescribes; None accepts any. Raises FrameError with
    one of the reasons listed in README.md.
    """
    if len(data) < HEADER.size + CHECKSUM.size:
        raise FrameError("truncated", f"{len(data)} bytes are less than a header")
    version, zero, kept_field, tensors, gap_bytes, magnitude_bytes = HEADER.unpack_from(data)
    if version != VERSION:
        raise FrameError("bad-version", f"version {version}, this side speaks {VERSION}")
    if zero != 0:
        raise FrameError("bad-version", "the second byte is not zero")
    if not 1 <= kept_field <= CHUNK:
        raise FrameError("bad-density", f"{kept_field} kept values per chunk")
    if kept_per_chunk is not None and kept_field != kept_per_chunk:
        raise FrameError("bad-density", f"{kept_field} kept values per chunk, not {kept_per_chunk}")
    if tensors != len(layout.sizes):
        raise FrameError("bad-tensor-count", f"{tensors} tensors, not {len(layout.sizes)}")
    limit = max_frame_bytes(layout, kept_field)
    if len(data) > limit:
        raise FrameError("too-large", f"{len(data)} bytes, at most {limit} are possible")
    kept = layout.kept_per_tensor(kept_field)
    magnitudes_end = HEADER.size + 8 * tensors
    counts_end = magnitudes_end + _counts_size(kept)
    sign_bytes = (int(kept.sum()) + 7) // 8
    expected = counts_end + gap_bytes + magnitude_bytes + sign_bytes + CHECKSUM.size
    if len(data) != expected:
        reason = "truncated" if len(data) < expected else "trailing-data"
        raise FrameError(reason, f"{len(data)} bytes, the header calls for {expected}")
    body_end = len(data) - CHECKSUM.size
    if zlib.crc32(memoryview(data)[:body_end]) != CHECKSUM.unpack_from(data, body_end)[0]:
        raise FrameError("bad-checksum", "the frame was damaged on its way")
    return Frame(
        kept_per_chunk=kept_field,
        centroids=_parse_centroids(data[HEADER.size : magnitudes_end]),
        counts=_parse_counts(data[magnitudes_end:counts_end], kept),
        gap_bytes=gap_bytes,
        magnitude_bytes=magnitude_bytes,
        body=data[counts_end:body_end],
    )


def tensor_norms(frame: Frame) -> list[float]:
    """L2 norm of each tensor of the delta, from what the header declares.

    The arithmetic is Python's own fp64 in a fixed order, so every machine gets the same bits.
    """
    norms = []
    for centroids, counts in zip(frame.centroids.tolist(), frame.counts.tolist(), strict=True):
        square = 0.0
        for centroid, count in zip(centroids, counts, strict=True):
            square += count * (centroid * centroid)
        norms.append(math.sqrt(square))
    return norms


def max_gap_bytes(layout: Layout, kept: int) -> int:
    """Largest gap stream before compression: one byte per value, and one per 255 skipped."""
    return kept + (layout.total - kept) // 255


def max_frame_bytes(layout: Layout, kept_per_chunk: int) -> int:
    """Size no honest frame exceeds, known before the first byte is downloaded."""
    per_tensor = layout.kept_per_tensor(kept_per_chunk)
    kept = int(per_tensor.sum())
    plane_bytes = (kept + 7) // 8
    return (
        HEADER.size
        + 8 * len(layout.sizes)
        + _counts_size(per_tensor)
        + _compressed_bound(max_gap_bytes(layout, kept))
        + _compressed_bound(plane_bytes)
        + plane_bytes
        + CHECKSUM.size
    )


def _compressed_bound(size: int) -> int:
    """What zstd may need for incompressible input: ZSTD_compressBound in zstd.h."""
    return size + (size >> 8) + (max(0, (128 << 10) - size) >> 11)


def _parse_centroids(data: bytes) -> NDArray[np.float32]:
    magnitudes = np.frombuffer(data, dtype="<f4").reshape(-1, 2)
    if not np.isfinite(magnitudes).all():
        raise FrameError("bad-centroids", "a centroid is not finite")
    if np.signbit(magnitudes).any() or (magnitudes[:, 0] > magnitudes[:, 1]).any():
        raise FrameError("bad-centroids", "a tensor does not have 0 <= lo <= hi")
    return np.concatenate((-magnitudes[:, ::-1], magnitudes), axis=1, dtype=np.float32)


def _count_fields(
    kept: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where the bits of the 3 * T counts lie: (first bit of each, field of each bit, its weight).

    A count of a tensor that keeps n values takes as many bits as n itself, the lowest first.
    """
    widths = np.repeat([count.bit_length() for count in kept.tolist()], 3)
    starts = np.cumsum(widths) - widths
    fields = np.repeat(np.arange(widths.size), widths)
    return starts, fields, np.arange(fields.size) - starts[fields]


def _counts_size(kept: NDArray[np.int64]) -> int:
    """Bytes of all packed counts."""
    bits = sum(int(count).bit_length() for count in kept)
    return (3 * bits + 7) // 8


def _pack_counts(counts: NDArray[np.int64], kept: NDArray[np.int64]) -> bytes:
    _, fields, weights = _count_fields(kept)
    bits = (counts[:, :3].reshape(-1)[fields] >> weights) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def _parse_counts(data: bytes, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    starts, fields, weights = _count_fields(kept)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[fields.size :].any():
        raise FrameError("bad-padding", "a bit behind the last count is set")
    counts = np.empty((kept.size, 4), dtype=np.int64)
    placed = bits[: fields.size].astype(np.int64) << weights
    counts[:, :3] = np.add.reduceat(placed, starts).reshape(-1, 3)
    # The fourth count is what the other three leave over.
    counts[:, 3] = kept - counts[:, :3].sum(axis=1)
    if (counts[:, 3] < 0).any():
        raise FrameError("bad-counts", "a tensor declares more values than it keeps")
    return counts
