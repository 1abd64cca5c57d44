"""What a node trains on: its own text, as tokens, and the part of it that is only ever measured.

A document is held out when its SHA-256 begins below 5 % of the range. That depends on its content
alone: the same text is held out wherever and whenever it is read, copies of it fall on the same
side, and adding files later moves nothing from one side to the other.

Which tokens step s of round r reads follows from (seed, r, s) alone, so a run can be repeated, and
a node that was restarted does not begin its data again.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from shoal.training.builtin_text import builtin_documents
from shoal.training.documents import FileDocuments, Tell
from shoal.training.errors import TrainingError
from shoal.training.token_files import MEMORY_BYTES, BuiltMeanwhile, Entry, Split, Spool
from shoal.training.tokenizer import SEPARATOR, Tokenizer, Tokens

HELD_OUT_SHARE = 0.05
# Hashes below are held out.
THRESHOLD = int(HELD_OUT_SHARE * 2**64).to_bytes(8, "big")
BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 1024
NOTHING: Tokens = np.zeros(0, dtype=np.uint8)


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
    # The largest of all of them, where it is known: files may be larger than can be gone through.
    largest: int | None = None

    def require(self, *, sequence: int, vocabulary_size: int) -> None:
        """Raise TrainingError unless windows of `sequence` + 1 tokens can be cut and embedded."""
        for name, tokens in (("to train on", self.train), ("to hold out", self.held_out)):
            if len(tokens) <= sequence:
                raise TrainingError(
                    f"{self.source}: too short: {len(tokens)} tokens {name}, {sequence + 1} are "
                    "needed; give it more text or make sequence smaller"
                )
        largest = self.largest
        if largest is None:
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


def load(
    source: str,
    tokenizer: Tokenizer,
    *,
    cache: Path | None = None,
    bound: int = MEMORY_BYTES,
    tell: Tell | None = None,
) -> Corpus:
    """Read "builtin:I/N" or a file or directory of text.

    cache: directory of the tokens of files where they take more than `bound` bytes, for as long as
    the files do not change; None keeps them in memory. tell: as in FileDocuments.
    Raises TrainingError, one line, for whatever keeps it from being trained on.
    """
    if source.startswith("builtin"):
        shard = re.fullmatch(r"builtin:(\d{1,4})/(\d{1,4})", source)
        if shard is None:
            raise TrainingError(f'"{source}" is no shard; write builtin:I/N, like builtin:0/4')
        documents = builtin_documents(index=int(shard[1]), shards=int(shard[2]))
        found = split_held_out(documents, tokenizer)
    else:
        found = _split_files(FileDocuments.of(source, tell), tokenizer, cache, bound)
    if not len(found.train) or not len(found.held_out):
        raise TrainingError(f"{source}: holds no text")
    return Corpus(source, found.train, found.held_out, found.largest)


def _split_files(
    documents: FileDocuments, tokenizer: Tokenizer, cache: Path | None, bound: int
) -> Split:
    if cache is None:
        return split_held_out(documents, tokenizer)
    entry = Entry.of(documents, tokenizer, cache)
    while (found := entry.open()) is None:
        with suppress(BuiltMeanwhile):
            return split_held_out(documents, tokenizer, Spool(entry, bound))
    return found


def union_held_out(shards: int, tokenizer: Tokenizer) -> Tokens:
    """Return the held-out tokens of all of "builtin:0/N" to "builtin:N-1/N", one after another."""
    parts = [load(f"builtin:{index}/{shards}", tokenizer).held_out for index in range(shards)]
    return np.concatenate(parts)


def split_held_out(
    documents: Iterable[str], tokenizer: Tokenizer, spool: Spool | None = None
) -> Split:
    """Return the tokens of the documents to train on and of those held out.

    Where chance holds out none or all of a few documents, the one with the smallest hash is held
    out; of a single document, its last 5 %.

    documents: gone through a second time in these cases. spool: where the tokens are collected.
    Raises as `Spool.add` and `Spool.finish`.
    """
    with closing(spool or Spool()) as spool:
        count, smallest = _collect(documents, tokenizer, spool, lambda digest: digest < THRESHOLD)
        if count == 1:
            (text,) = filter(str.strip, documents)
            tokens = tokenizer.encode(text)
            cut = len(tokens) - max(1, round(HELD_OUT_SHARE * len(tokens)))
            return Split(tokens[:cut], tokens[cut:], int(tokens.max(initial=0)))
        if not all(spool.counts):
            spool.restart()
            _collect(documents, tokenizer, spool, lambda digest: digest == smallest)
        if not all(spool.counts):
            return Split(NOTHING, NOTHING, 0)
        return spool.finish()


def _collect(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    spool: Spool,
    is_held_out: Callable[[bytes], bool],
) -> tuple[int, bytes]:
    """Tokenise documents into the spool; returns how many there are and their smallest hash."""
    count, smallest = 0, b"\xff" * 32
    for texts in _batches(filter(str.strip, documents)):
        digests = [hashlib.sha256(each.encode(errors="surrogatepass")).digest() for each in texts]
        count, smallest = count + len(texts), min(smallest, *digests)
        tokens = tokenizer.encode_all([text + SEPARATOR for text in texts])
        for digest, each in zip(digests, tokens, strict=True):
            spool.add(each, held_out=is_held_out(digest))
    return count, smallest


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Put documents together to what is worth sharing between cores and small in memory."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
