"""The shared model as integers, and how deltas add up in it.

    A = A_0 - sum over the set of deltas of increments        (mod 2^32, per parameter)

Integer addition commutes and associates even where it wraps around, so the anchor depends only
on *which* deltas were added: not on their order, not on the device, not on the number of
threads. That makes it a CRDT, its Merkle root something a quorum can sign, and taking a delta out
again (`undo`) exact. Whether values are still in range is asked once, of the result
(docs/adr/0003-integer-anchor-wraparound.md says why not at every add).

Source: delta-log SparseLoCo, reference/algorithms.md 1.4.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta
from shoal.compression.frame import Frame
from shoal.gossip.errors import DeltaError
from shoal.gossip.schema import ModelSchema
from shoal.gossip.tree import bind_root, leaves_of

# The largest magnitude an attested anchor may hold; int32 goes on to 2^31, a factor of 2 beyond.
MAGNITUDE_MAX = 1 << 30


def increments(
    delta: SparseDelta | Frame,
    *,
    weight: float,
    alpha: float,
    scales: NDArray[np.float64],
    schema: ModelSchema,
) -> NDArray[np.int32]:
    """What each centroid of a delta subtracts from the anchor: int32 [T, 4].

    round_half_even(alpha * weight * scale_t * centroid * 2^f_t), in fp64 and in this order of
    multiplications; numpy's element-wise fp64 products and rint round as IEEE 754 says, so every
    machine gets the same integers. `scales`: float64 [T], see parameters.clip_scales.

    Raises DeltaError("increment-too-large") where one delta would move a parameter by more
    than 1.0.
    """
    bits = np.array([tensor.fraction_bits for tensor in schema.tensors])
    factors: NDArray[np.float64] = (alpha * weight) * scales
    exact = np.ldexp(factors[:, None] * delta.centroids.astype(np.float64), bits[:, None])
    rounded = np.rint(exact)
    if not (np.abs(rounded) <= np.ldexp(1.0, bits)[:, None]).all():
        raise DeltaError("increment-too-large", "one delta moves a parameter by more than 1.0")
    steps: NDArray[np.int32] = rounded.astype(np.int32)
    return steps


class Anchor:
    """The parameters as fixed-point integers: torch.int32 [P] on any device, changed in place."""

    def __init__(self, schema: ModelSchema, values: torch.Tensor) -> None:
        assert values.dtype == torch.int32, "an anchor is int32"
        assert values.shape == (schema.layout.total,), "an anchor is one flat vector"
        assert values.is_contiguous(), "an anchor lies in one piece"
        self.schema = schema
        self.values = values

    @classmethod
    def from_weights(cls, schema: ModelSchema, weights: torch.Tensor) -> "Anchor":
        """Round float32 [P] half to even; raises ValueError where a weight does not fit."""
        assert weights.shape == (schema.layout.total,), "weights are one flat vector"
        scaled = weights.detach().to(torch.float32).clone()
        for run in schema.scale_runs:
            # A power of two: the product is exact, so only round_ rounds.
            scaled[run.start : run.end].mul_(2.0**run.fraction_bits)
        scaled.round_()
        # Written so that NaN fails as well.
        if not bool((scaled.abs() <= MAGNITUDE_MAX).all()):
            raise ValueError("a weight is not finite or does not fit its tensor's scale")
        return cls(schema, scaled.to(torch.int32))

    def to_weights(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The model: float32 [P] on the anchor's device, or written into `out` on any device."""
        weights = torch.empty_like(self.values, dtype=torch.float32) if out is None else out
        assert weights.dtype == torch.float32, "weights are float32"
        weights.copy_(self.values)
        for run in self.schema.scale_runs:
            weights[run.start : run.end].mul_(2.0**-run.fraction_bits)
        return weights

    def copy(self) -> "Anchor":
        """An anchor of its own with the same values."""
        return Anchor(self.schema, self.values.clone())

    def apply(self, delta: SparseDelta, increments: NDArray[np.int32]) -> None:
        """A[idx] -= increments[tensor, code]. `increments`: int32 [T, 4]."""
        self._add(delta, -increments)

    def undo(self, delta: SparseDelta, increments: NDArray[np.int32]) -> None:
        """Take a delta out again, exactly, whatever came before or after it."""
        self._add(delta, increments)

    def out_of_range(self) -> bool:
        """Whether any magnitude is above 2^30: a node does not attest such an anchor."""
        smallest, largest = torch.aminmax(self.values)
        return int(smallest) < -MAGNITUDE_MAX or int(largest) > MAGNITUDE_MAX

    def merkle_leaves(self) -> list[bytes]:
        """SHA-256 of each 64 KiB of the little-endian int32 bytes, the last piece shorter."""
        values = self.values.cpu().numpy().astype("<i4", copy=False)
        data = values.view(np.uint8)
        return leaves_of(data.data)

    def root(self) -> bytes:
        """32 bytes that are equal exactly where schema and all values are."""
        return bind_root(self.schema.digest, self.schema.layout.total, self.merkle_leaves())

    def _add(self, delta: SparseDelta, table: NDArray[np.int32]) -> None:
        assert delta.layout.sizes == self.schema.layout.sizes, "the delta is of another model"
        assert table.dtype == np.int32, "increments are int32, so that sums wrap as everywhere"
        assert table.shape == delta.centroids.shape, "one increment per centroid"
        steps = table.reshape(-1)[delta.table_ids()]
        if self.values.device.type == "cpu":
            values = self.values.numpy()
            # Positions are distinct, so plain indexing adds each step once.
            values[delta.indices] += steps
            return
        indices = torch.from_numpy(delta.indices).to(self.values.device)
        self.values.index_add_(0, indices, torch.from_numpy(steps).to(self.values.device))
