"""A node's own model: the running mean of its own weights over its last rounds.

Between two exchanges a node knows more than it has said, the more so the less it may send: at a
small budget its own weights are better than the anchor on everybody's text, and they are always
nearer to its own. A level learning rate leaves noise in them, which the mean has less of. With x_n
its weights at the end of its round n and N rounds to go back,

    m_n = m_{n-1} + (x_n - m_{n-1}) / min(n, N)

(Izmailov et al. 2018, arXiv:1803.05407; Kaddour 2022, arXiv:2209.14981). Nothing of it is sent, and
nobody has signed it. It stands closer to the node's own text than what the mesh sees: give it away
as you would the text.
"""

from pathlib import Path

import structlog
import torch

from shoal.gossip.schema import ModelSchema

log = structlog.get_logger()

OWN = "own.safetensors"
# In the file's own metadata: the round that the mean ends with, and N.
ROUND, ROUNDS = "round", "rounds"


class OwnMean:
    """The running mean of one node, and its file."""

    def __init__(self, directory: Path, schema: ModelSchema, rounds: int) -> None:
        """rounds: N; 0 keeps no mean."""
        self._path = directory / OWN
        self._schema = schema
        self._rounds = rounds
        self._seen = 0
        self.weights: torch.Tensor | None = None

    @property
    def wanted(self) -> bool:
        """Whether a mean is kept at all."""
        return self._rounds > 0

    def add(self, start: torch.Tensor, delta: torch.Tensor) -> None:
        """Take in the weights after one more round, start - delta, each [P]."""
        self._seen += 1
        if self.weights is None:
            self.weights = start - delta
        else:
            # Without a vector of their own: of a large model its pages take as long as the rest.
            share = 1 / min(self._seen, self._rounds)
            self.weights.lerp_(start, share).sub_(delta, alpha=share)

    def write(self, round: int, weights: torch.Tensor) -> None:
        """Put `weights`, the mean after that round, where the one before it was (any thread)."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        parts = torch.split(weights, [tensor.size for tensor in self._schema.tensors])
        named = {
            tensor.name: part.view(tensor.shape)
            for tensor, part in zip(self._schema.tensors, parts, strict=True)
        }
        said = {"format": "pt", ROUND: str(round), ROUNDS: str(self._rounds)}
        partial = self._path.with_suffix(".partial")
        try:
            save_file(named, partial, said)
            partial.rename(self._path)
        except (OSError, SafetensorError) as error:
            # What the mesh needs of this disk matters more; the one of before stays.
            log.warning("own-mean.not-written", path=str(self._path), why=str(error))
