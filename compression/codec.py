"""A sparse two-bit delta <-> the bytes of a frame.

What travels is which positions of the flat parameter vector change and which of its tensor's four
centroids each of them takes. `encode` and `decode` only arrange; the fixed fields are in frame.py,
the compressed streams in streams.py, the choice of values in select.py.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.compression.frame import (
    Frame,
    FrameError,
    max_frame_bytes,
    max_gap_bytes,
    pack_frame,
    parse_frame,
)
from shoal.compression.layout import Layout
from shoal.compression.streams import (
    bytes_to_gaps,
    codes_to_planes,
    compress,
    decompress,
    gaps_to_bytes,
    planes_to_codes,
)

__all__ = ["SparseDelta", "decode", "encode", "max_frame_bytes"]


@dataclass(frozen=True, slots=True, eq=False)
class SparseDelta:
    """The kept values of one delta, K of them.

    indices: int64 [K], strictly ascending positions in the flat vector; codes: uint8 [K], 0..3;
    centroids: float32 [T, 4], ascending (-hi, -lo, +lo, +hi) per tensor; counts: int64 [T, 4],
    how many values of the tensor carry each code.
    """

    layout: Layout
    kept_per_chunk: int
    indices: NDArray[np.int64]
    codes: NDArray[np.uint8]
    centroids: NDArray[np.float32]
    counts: NDArray[np.int64]

    def tensor_ids(self) -> NDArray[np.int64]:
        """The tensor each kept value belongs to: int64 [K], ascending."""
        return np.repeat(np.arange(len(self.layout.sizes)), self.counts.sum(axis=1))

    def table_ids(self) -> NDArray[np.int64]:
        """Where each kept value's centroid stands in a flat [T * 4] table: int64 [K]."""
        ids: NDArray[np.int64] = self.tensor_ids()
        ids *= 4
        ids += self.codes
        return ids

    def values(self, scales: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
        """What a receiver adds at each position: float32(centroid * scale of its tensor), [K]."""
        table = self.centroids
        if scales is not None:
            table = (table.astype(np.float64) * scales[:, None]).astype(np.float32)
        values: NDArray[np.float32] = table.reshape(-1)[self.table_ids()]
        return values


def encode(selection: SparseDelta) -> bytes:
    """The frame of a delta (README.md); `decode` gives the same delta back."""
    magnitude_plane, sign_plane = codes_to_planes(selection.codes)
    gaps = compress(gaps_to_bytes(selection.indices))
    magnitudes = compress(magnitude_plane)
    frame = Frame(
        kept_per_chunk=selection.kept_per_chunk,
        centroids=selection.centroids,
        counts=selection.counts,
        gap_bytes=len(gaps),
        magnitude_bytes=len(magnitudes),
        body=gaps + magnitudes + sign_plane,
    )
    return pack_frame(frame, selection.layout)


def decode(data: bytes, layout: Layout, *, kept_per_chunk: int | None = None) -> SparseDelta:
    """The delta in a peer's frame, every rule of README.md checked.

    Memory is bounded by the kept values that `layout` and the declared density call for;
    `kept_per_chunk`, where given, is the only density accepted. Raises FrameError.
    """
    frame = parse_frame(data, layout, kept_per_chunk=kept_per_chunk)
    kept_per_tensor = layout.kept_per_tensor(frame.kept_per_chunk)
    kept = int(kept_per_tensor.sum())
    plane_bytes = (kept + 7) // 8
    magnitudes_start, signs_start = frame.gap_bytes, frame.gap_bytes + frame.magnitude_bytes
    # The small plane goes first: what is wrong with it is found before the gaps are expanded.
    magnitude_plane = decompress(
        frame.body[magnitudes_start:signs_start], at_least=plane_bytes, at_most=plane_bytes
    )
    codes = planes_to_codes(magnitude_plane, frame.body[signs_start:], kept)
    gaps = decompress(
        frame.body[:magnitudes_start], at_least=kept, at_most=max_gap_bytes(layout, kept)
    )
    delta = SparseDelta(
        layout=layout,
        kept_per_chunk=frame.kept_per_chunk,
        indices=bytes_to_gaps(gaps, kept, layout.total),
        codes=codes,
        centroids=frame.centroids,
        counts=frame.counts,
    )
    _check_chunks(delta)
    counted = np.bincount(delta.table_ids(), minlength=delta.counts.size)
    if not np.array_equal(counted, delta.counts.reshape(-1)):
        raise FrameError("bad-counts", "the codes are not those the header counts")
    return delta


def _check_chunks(delta: SparseDelta) -> None:
    """Every chunk holds exactly the values it must.

    The positions ascend, so it is enough that the first and the last of each chunk's share lie
    inside the chunk.
    """
    offsets = delta.layout.chunk_offsets
    ends = np.cumsum(delta.layout.kept(delta.kept_per_chunk))
    starts = np.concatenate(([0], ends[:-1]))
    inside = (delta.indices[starts] >= offsets[:-1]) & (delta.indices[ends - 1] < offsets[1:])
    if not inside.all():
        raise FrameError("bad-chunk", "a chunk does not hold the number of values it must")
