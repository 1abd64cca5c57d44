"""Which values of a delta are worth sending: chunked top-k, rounded to a sign and a magnitude.

Every chunk of 4096 keeps its k largest magnitudes, so no tensor starves and the density is exact.
The bits of a float32 without the sign order magnitudes as integers do, infinities above all
numbers and NaN above infinities: the k-th largest integer of a chunk is its threshold, no NaN can
slip past it. Among equals at the threshold the lower positions win, so that the choice is the same
on every device and for every number of threads.

Where few are kept they are all nearly as large as the threshold, and one magnitude per tensor says
what is worth saying: a second bit would cost a tenth of the frame for a hundredth of the energy.
Where many are kept there are two, split at the mean magnitude (docs/adr/0028).

Source: chunked top-k with error feedback as in SparseLoCo (Sarfi et al., 2025); signs with one mean
magnitude as in EF-signSGD (Karimireddy et al., 2019, arXiv:1901.09847).
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta
from shoal.compression.layout import CHUNK, Layout, Run, kept_of_chunk

MAGNITUDE_BITS = 0x7FFF_FFFF
# A block of rows fits the second-level cache with its scratch copy; an accelerator wants more.
CPU_BLOCK = 64 * CHUNK
DEVICE_BLOCK = 1 << 24
# Up to so many kept of 4096 a value is said by its sign alone.
ONE_MAGNITUDE_MAX = 256


class NonFiniteError(ArithmeticError):
    """The error vector holds NaN or infinity: the caller skips the round and clears it."""


def select(error: torch.Tensor, layout: Layout, kept_per_chunk: int) -> SparseDelta:
    """The delta to send for `error`, float32 [P] on any device, which is left unchanged.

    Exactly `layout.kept(kept_per_chunk)` values of each chunk are chosen, largest magnitudes
    first, lower positions first among equals. Raises NonFiniteError on NaN or infinity.
    """
    assert error.dtype == torch.float32, "the error vector is float32"
    assert error.shape == (layout.total,), "the error vector is one flat vector of P values"
    flat = error.detach().contiguous()
    kept_per_tensor = layout.kept_per_tensor(kept_per_chunk)
    kept = int(kept_per_tensor.sum())
    indices = np.empty(kept, dtype=np.int64)
    values = np.empty(kept, dtype=np.float32)
    filled = 0
    pick = _OnCpu(flat) if flat.device.type == "cpu" else _OnDevice(flat)
    for run in layout.runs:
        row_kept = kept_of_chunk(run.size, kept_per_chunk)
        rows_per_block = max(1, pick.block // run.size)
        for row in range(0, run.rows, rows_per_block):
            rows = min(rows_per_block, run.rows - row)
            block = Run(run.start + row * run.size, rows, run.size)
            part = slice(filled, filled + rows * row_kept)
            indices[part], values[part] = pick(block, row_kept)
            filled = part.stop
    assert filled == kept, "every chunk keeps what the layout says"
    # NaN and infinity are the largest magnitudes of all, so if there are any, they were chosen.
    if not np.isfinite(values).all():
        raise NonFiniteError("the error vector holds NaN or infinity")
    split = kept_per_chunk > ONE_MAGNITUDE_MAX
    codes, centroids, counts = _quantise(values, kept_per_tensor, split=split)
    return SparseDelta(layout, kept_per_chunk, indices, codes, centroids, counts)


class _OnCpu:
    """The kept positions and values of a block of rows, by numpy's vectorised partition."""

    block = CPU_BLOCK

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat.numpy()
        size = max(CHUNK, min(self.block, self._flat.size))
        self._magnitudes = np.empty(size, dtype=np.int32)
        self._scratch = np.empty(size, dtype=np.int32)
        self._mask = np.empty(size, dtype=np.bool_)

    def __call__(self, rows: Run, kept: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        count = rows.rows * rows.size
        shape = (rows.rows, rows.size)
        values = self._flat[rows.start : rows.start + count]
        matrix = self._magnitudes[:count].reshape(shape)
        np.bitwise_and(values.view(np.int32).reshape(shape), MAGNITUDE_BITS, out=matrix)
        scratch = self._scratch[:count].reshape(shape)
        scratch[:] = matrix
        scratch.partition(rows.size - kept, axis=1)
        thresholds = scratch[:, rows.size - kept, None].copy()
        mask = self._mask[:count].reshape(shape)
        np.greater_equal(matrix, thresholds, out=mask)
        chosen = np.flatnonzero(mask)
        if chosen.size != rows.rows * kept:
            tied = np.flatnonzero(np.count_nonzero(mask, axis=1) > kept)
            above = matrix[tied] > thresholds[tied]
            equal = mask[tied] ^ above
            room = kept - np.count_nonzero(above, axis=1)[:, None]
            rank = np.cumsum(equal, axis=1, dtype=np.int32)
            mask[tied] = above | (equal & (rank <= room))
            chosen = np.flatnonzero(mask)
        return chosen + rows.start, values[chosen]


class _OnDevice:
    """The same choice with torch's kernels, for a vector that lives on an accelerator."""

    block = DEVICE_BLOCK

    def __init__(self, flat: torch.Tensor) -> None:
        self._flat = flat

    def __call__(self, rows: Run, kept: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        count = rows.rows * rows.size
        values = self._flat[rows.start : rows.start + count]
        matrix = values.view(torch.int32).view(rows.rows, rows.size) & MAGNITUDE_BITS
        thresholds = torch.topk(matrix, kept, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        mask = matrix >= thresholds
        chosen = mask.view(-1).nonzero().view(-1)
        if chosen.numel() != rows.rows * kept:
            tied = (mask.sum(dim=1) > kept).nonzero().view(-1)
            above = matrix[tied] > thresholds[tied]
            equal = mask[tied] ^ above
            room = kept - above.sum(dim=1, keepdim=True)
            rank = torch.cumsum(equal, dim=1, dtype=torch.int32)
            mask[tied] = above | (equal & (rank <= room))
            chosen = mask.view(-1).nonzero().view(-1)
        return (chosen + rows.start).cpu().numpy(), values[chosen].cpu().numpy()


def _quantise(
    values: NDArray[np.float32], kept_per_tensor: NDArray[np.int64], *, split: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """Codes uint8 [K], centroids float32 [T, 4] and counts int64 [T, 4] of the kept values.

    values: float32 [K] in tensor order. With `split` the mean magnitude of each tensor splits its
    values; hi is the mean magnitude of those at or above it, lo of those below. Without, all are
    lo, and hi is the same. Sums are fp64 in a fixed order.
    """
    tensors = kept_per_tensor.size
    magnitudes = np.abs(values)
    large = np.zeros(values.size, dtype=np.bool_)
    if split:
        starts = np.cumsum(kept_per_tensor) - kept_per_tensor
        means = np.add.reduceat(magnitudes, starts, dtype=np.float64) / kept_per_tensor
        large = magnitudes >= np.repeat(means.astype(np.float32), kept_per_tensor)
    positive = ~np.signbit(values)
    codes = (large == positive).view(np.uint8)
    codes |= positive.view(np.uint8) << 1
    keys = np.repeat(np.arange(0, 4 * tensors, 4), kept_per_tensor)
    keys += codes
    counts = np.bincount(keys, minlength=4 * tensors).reshape(tensors, 4)
    sums = np.bincount(keys, weights=magnitudes, minlength=4 * tensors).reshape(tensors, 4)
    # Columns 1 and 2 are lo, 0 and 3 are hi. An empty side takes the other's value: no code
    # refers to it, and the order lo <= hi holds.
    sides = np.stack((counts[:, 1] + counts[:, 2], counts[:, 0] + counts[:, 3]), axis=1)
    side_sums = np.stack((sums[:, 1] + sums[:, 2], sums[:, 0] + sums[:, 3]), axis=1)
    pair = (side_sums / np.maximum(sides, 1)).astype(np.float32)
    pair = np.where(sides > 0, pair, pair[:, ::-1])
    centroids = np.concatenate((-pair[:, ::-1], pair), axis=1)
    return codes, centroids, counts.astype(np.int64, copy=False)
