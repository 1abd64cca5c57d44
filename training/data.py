"""What a node trains on: its own text, as tokens, and the part of it that is only ever measured.

A document is held out when its SHA-256 begins below 5 % of the range. That depends on its content
alone: the same text is held out wherever and whenever it is read, copies of it fall on the same
side, and adding files later moves nothing from one side to the other.

Which tokens step s of round r reads follows from (seed, r, s) alone, so a run can be repeated, and
a node that was restarted does not begin its data again.
"""

import hashlib
import re
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from shoal.training.builtin_text import builtin_documents
from shoal.training.documents import file_documents
from shoal.training.errors import TrainingError
from shoal.training.tokenizer import SEPARATOR, Tokenizer, Tokens

HELD_OUT_SHARE = 0.05


class Source(Protocol):
    """What a node learns from: a Corpus of text, or the Examples of a task (task_training.py)."""

    @property
    def train(self) -> Sized:
        """What it is trained on."""

    def batch(self, *, seed: int, round: int, step: int, batch: int, sequence: int) -> Any:
        """Return what one step learns from, as the loss of its model takes it."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """One source as two strings of tokens."""

    source: str
    train: Tokens
    held_out: Tokens

    def require(self, *, sequence: int, vocabulary_size: int) -> None:
        """Raise TrainingError unless windows of `sequence` + 1 tokens can be cut and embedded."""
        for name, tokens in (("to train on", self.train), ("to hold out", self.held_out)):
            if len(tokens) <= sequence:
                raise TrainingError(
                    f"{self.source}: too short: {len(tokens)} tokens {name}, {sequence + 1} are "
                    "needed; give it more text or make sequence smaller"
                )
        largest = max(int(self.train.max()), int(self.held_out.max()))
        if largest >= vocabulary_size:
            raise TrainingError(
                f"{self.source}: the tokenizer gives token {largest}, but the model's vocabulary "
                f"has {vocabulary_size}; they do not belong together"
            )

    def batch(self, *, seed: int, round: int, step: int, batch: int, sequence: int) -> torch.Tensor:
        """Return random windows of the training tokens: int64 [batch, sequence + 1]."""
        starts = np.random.default_rng((seed, round, step)).integers(
            0, len(self.train) - sequence, size=batch
        )
        return windows(self.train, starts, sequence)


def windows(tokens: Tokens, starts: np.ndarray, sequence: int) -> torch.Tensor:
    """Return the `sequence` + 1 tokens from each start: int64 [len(starts), sequence + 1]."""
    positions = starts[:, np.newaxis] + np.arange(sequence + 1)
    return torch.from_numpy(tokens[positions].astype(np.int64))


def load(source: str, tokenizer: Tokenizer) -> Corpus:
    """Read "builtin:I/N" or a file or directory of text.

    Raises TrainingError, one line, for whatever keeps it from being trained on.
    """
    if source.startswith("builtin"):
        shard = re.fullmatch(r"builtin:(\d{1,4})/(\d{1,4})", source)
        if shard is None:
            raise TrainingError(f'"{source}" is no shard; write builtin:I/N, like builtin:0/4')
        documents: Iterable[str] = builtin_documents(index=int(shard[1]), shards=int(shard[2]))
    else:
        documents = file_documents(Path(source))
    train, held_out = split_held_out(documents, tokenizer)
    if not len(train) or not len(held_out):
        raise TrainingError(f"{source}: holds no text")
    return Corpus(source, train, held_out)


def union_held_out(shards: int, tokenizer: Tokenizer) -> Tokens:
    """Return the held-out tokens of all of "builtin:0/N" to "builtin:N-1/N", one after another."""
    parts = [load(f"builtin:{index}/{shards}", tokenizer).held_out for index in range(shards)]
    return np.concatenate(parts)


def split_held_out(documents: Iterable[str], tokenizer: Tokenizer) -> tuple[Tokens, Tokens]:
    """Return the tokens of the documents to train on and of those held out.

    Where chance holds out none or all of a few documents, the one with the smallest hash is held
    out; of a single document, its last 5 %.
    """
    hashed = [
        (hashlib.sha256(text.encode(errors="surrogatepass")).digest(), text)
        for text in documents
        if text.strip()
    ]
    if len(hashed) == 1:
        tokens = tokenizer.encode(hashed[0][1])
        cut = len(tokens) - max(1, round(HELD_OUT_SHARE * len(tokens)))
        return tokens[:cut], tokens[cut:]
    threshold = int(HELD_OUT_SHARE * 2**64).to_bytes(8, "big")
    chosen = {digest for digest, _ in hashed if digest[:8] < threshold}
    if hashed and (not chosen or len(chosen) == len({digest for digest, _ in hashed})):
        chosen = {min(digest for digest, _ in hashed)}
    return (
        _join((text for digest, text in hashed if digest not in chosen), tokenizer),
        _join((text for digest, text in hashed if digest in chosen), tokenizer),
    )


def _join(documents: Iterable[str], tokenizer: Tokenizer) -> Tokens:
    parts = [tokenizer.encode(text + SEPARATOR) for text in documents]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)
