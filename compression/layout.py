"""How the flat parameter vector is cut into chunks.

A model is one flat vector, the concatenation of its tensors in schema order. Every tensor is cut
into chunks of 4096 values, the last one shorter, and no chunk spans two tensors. Because each
chunk sends a number of values that follows from its size alone, both ends know without being told
how many values a tensor, and a whole delta, must carry: a frame needs no sizes, and a frame that
disagrees with the receiver's own layout is refused before anything is allocated for it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096


def kept_of_chunk(size: int, per_chunk: int) -> int:
    """Values a chunk of `size` sends: ceil(size * per_chunk / 4096), so at least 1."""
    return -(-size * per_chunk // CHUNK)


class Run(NamedTuple):
    """Neighbouring chunks of one size: a contiguous matrix [rows, size] inside the flat vector."""

    start: int
    rows: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Number of elements of each tensor, in schema order."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        # The schema has been checked by whoever built it, so a bad size is our own mistake.
        assert self.sizes, "a layout has at least one tensor"
        assert min(self.sizes) >= 1, "every tensor has at least one element"

    @cached_property
    def total(self) -> int:
        """P, the length of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Flat position where each tensor starts, and P at the end: int64 [T+1], read-only."""
        return _read_only(np.cumsum((0, *self.sizes), dtype=np.int64))

    @cached_property
    def tensor_chunks(self) -> NDArray[np.int64]:
        """Index of each tensor's first chunk, and the number of chunks at the end: int64 [T+1]."""
        sizes = np.asarray(self.sizes, dtype=np.int64)
        chunks = (sizes + (CHUNK - 1)) // CHUNK
        return _read_only(np.concatenate(([0], np.cumsum(chunks))).astype(np.int64))

    @cached_property
    def chunk_offsets(self) -> NDArray[np.int64]:
        """Flat position where each chunk starts, and P at the end: int64 [C+1], read-only."""
        per_tensor = np.diff(self.tensor_chunks)
        within = np.arange(self.tensor_chunks[-1]) - np.repeat(self.tensor_chunks[:-1], per_tensor)
        starts = np.repeat(self.offsets[:-1], per_tensor) + within * CHUNK
        return _read_only(np.append(starts, self.total).astype(np.int64))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The chunks in order, neighbours of equal size merged, so that few passes cover all."""
        sizes = np.diff(self.chunk_offsets)
        first = np.flatnonzero(np.diff(sizes, prepend=0))
        rows = np.diff(first, append=sizes.size)
        return tuple(
            Run(int(self.chunk_offsets[chunk]), int(count), int(sizes[chunk]))
            for chunk, count in zip(first, rows, strict=True)
        )

    def kept(self, per_chunk: int) -> NDArray[np.int64]:
        """Values each chunk sends, by `kept_of_chunk`: int64 [C]."""
        assert 1 <= per_chunk <= CHUNK, "between 1 and 4096 values are kept of a chunk"
        kept: NDArray[np.int64] = -(-np.diff(self.chunk_offsets) * per_chunk // CHUNK)
        return kept

    def kept_per_tensor(self, per_chunk: int) -> NDArray[np.int64]:
        """Values each tensor sends, the sum over its chunks: int64 [T]."""
        kept: NDArray[np.int64] = np.add.reduceat(self.kept(per_chunk), self.tensor_chunks[:-1])
        return kept


def _read_only(array: NDArray[np.int64]) -> NDArray[np.int64]:
    array.setflags(write=False)
    return array
