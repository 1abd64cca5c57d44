"""Error feedback: what a node could not say yet.

Compression drops most of every delta. The residual keeps what was dropped and adds it to the next
delta, so that nothing is lost, only late. That holds only if the sender subtracts exactly what
receivers add, after the clip they apply; and if a delta that never entered a checkpoint is put
back.

Source: error feedback as in EF-SGD (Karimireddy et al., 2019), decayed as in SparseLoCo (2025).
"""

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta


class Residual:
    """The error vector e, float32 [P], kept on the device it was created on.

    beta in (0, 1] is how much of the unsaid survives one round.
    """

    def __init__(self, error: torch.Tensor, beta: float) -> None:
        assert error.dtype == torch.float32, "the error vector is float32"
        assert error.ndim == 1, "the error vector is flat"
        assert 0.0 < beta <= 1.0, "beta is a fraction of what survives a round"
        self.error = error
        self.beta = beta

    def absorb(self, delta: torch.Tensor) -> None:
        """e = beta * e + delta, in one pass; delta: float32 [P]."""
        torch.add(delta, self.error, alpha=self.beta, out=self.error)

    def subtract(self, sent: SparseDelta, scales: NDArray[np.float64]) -> None:
        """Take out what receivers decode: float32(centroid * scale) at each kept position.

        scales: float64 [T], the clip factor receivers apply to each tensor of this delta.
        """
        self._add(sent, -sent.values(scales))

    def restore(self, sent: SparseDelta, scales: NDArray[np.float64]) -> None:
        """Put a delta that expired back, with the scales it was subtracted with."""
        self._add(sent, sent.values(scales))

    def clear(self) -> None:
        """Forget everything: the way out after NaN or infinity."""
        self.error.zero_()

    def _add(self, sent: SparseDelta, values: NDArray[np.float32]) -> None:
        assert self.error.numel() == sent.layout.total, "the delta is of another model"
        indices = torch.from_numpy(sent.indices).to(self.error.device)
        # Positions are distinct, so no two additions meet and the result is exact on any device.
        self.error.index_add_(0, indices, torch.from_numpy(values).to(self.error.device))
