"""Keys and values of recent texts: who goes on from one of them need not compute it again.

Most prompts begin like one before them: the same instructions, or a conversation and one message
more. The cache itself is transformers'; here is only which ones are kept. Nothing is locked:
whoever generates does so in one thread.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.cache_utils import DynamicCache, DynamicLayer

ENTRIES_MAX = 16
BYTES_MAX = 256 * 1024 * 1024

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Entry:
    """layers: its keys and values of each layer, tensors [1, heads, tokens, width]."""

    tokens: Tokens
    layers: list[tuple[Any, Any]]
    bytes: int


class PrefixCache:
    """The caches of the texts that were read last, at most so many and so many bytes."""

    def __init__(
        self, config: Any, *, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX
    ) -> None:
        """config: the model's, as transformers has it."""
        self._config = config
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._entries: list[_Entry] = []  # newest last

    def begin(self, prompt: list[int]) -> tuple[DynamicCache, int]:
        """Return a cache for `prompt` and how many of its tokens are in it already.

        They are never all of them: what follows the last one has to be computed.
        """
        wanted = np.asarray(prompt[:-1], dtype=np.int64)
        cache = DynamicCache(config=self._config)
        shared = [_shared(entry.tokens, wanted) for entry in self._entries]
        length = max(shared, default=0)
        if length:
            entry = self._entries.pop(shared.index(length))
            self._entries.append(entry)
            for index, (keys, values) in enumerate(entry.layers):
                cache.update(keys[:, :, :length], values[:, :, :length], index)
        return cache, length

    def keep(self, tokens: list[int], cache: DynamicCache) -> None:
        """Keep what `cache` holds of `tokens`, and drop what was used longest ago for it."""
        # What forgets, as a sliding window does, cannot be cut back to a prefix; and where a step
        # was broken off, the layers do not hold the same tokens.
        length = cache.get_seq_length()
        layers: list[tuple[Any, Any]] = [
            (layer.keys, layer.values)
            for layer in cache.layers
            if type(layer) is DynamicLayer and layer.get_seq_length() == length
        ]
        size = sum(keys.nbytes + values.nbytes for keys, values in layers)
        if not length or len(layers) < len(cache.layers) or size > self._bytes_max:
            return
        held = np.asarray(tokens[:length], dtype=np.int64)
        # Whatever begins one of these is in it.
        self._entries = [
            each for each in self._entries if _shared(each.tokens, held) < len(each.tokens)
        ]
        self._entries.append(_Entry(held, layers, size))
        while len(self._entries) > self._entries_max or self.bytes > self._bytes_max:
            del self._entries[0]

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return sum(entry.bytes for entry in self._entries)


def _shared(first: Tokens, second: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length
