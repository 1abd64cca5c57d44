"""Tokens that outgrow memory: in files, which are mapped and shared by whoever reads the same text.

An entry of the cache is a directory: train.bin and held_out.bin, the tokens in their order
(little-endian), and about.json, which says how many they are. Its name is a hash of all that they
follow from. It is written as NAME.new and gets its name when all of it is on the disk, so what has
a name is whole.

train.bin is locked by the process that writes it, so that a second one that wants the same waits
and then finds it; and by those that have it mapped, so that it is not removed under them. The
system lets go of a lock however a process ends, so what a killed one left is known by that.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from shoal.training.documents import FileDocuments
from shoal.training.errors import TrainingError
from shoal.training.tokenizer import Tokenizer, Tokens

# Another number where documents are cut, held out or joined in another way.
FORMAT = 1
# So many bytes of tokens may stay in memory.
MEMORY_BYTES = 64 << 20
HALVES = ("train", "held_out")
ABOUT = "about.json"
NEW = ".new"
TYPES = ("|u1", "<u2", "<u4")
# An entry that nobody opened for so long, or when so many others were opened since, is removed.
UNUSED_DAYS_MAX = 30
ENTRIES_MAX = 32
# How often somebody looks who waits for another process.
WAIT_S = 0.2


class Split(NamedTuple):
    """Tokens to train on, tokens held out, and the largest of all of them."""

    train: Tokens
    held_out: Tokens
    largest: int


class BuiltMeanwhile(Exception):
    """Another process has written the same tokens while this one waited for it."""


class Entry:
    """One source's place in the cache, whether there is anything or not."""

    def __init__(self, cache: Path, name: str) -> None:
        self.cache = cache
        self.path = cache / name

    @classmethod
    def of(cls, documents: FileDocuments, tokenizer: Tokenizer, cache: Path) -> Self:
        """Return the place of these documents' tokens; raises TrainingError where they cannot be
        read."""
        source = [FORMAT, *documents.identity, tokenizer.identity]
        # Two parts, so that the tokens of what a source held before can be told.
        return cls(cache, f"{_digest(source)}-{_digest(documents.stamps())}")

    def open(self) -> Split | None:
        """Map the tokens (read only); None where there are none, or not as many as there should be.

        They stay whatever becomes of the entry, as long as somebody has them.
        """
        try:
            about = json.loads((self.path / ABOUT).read_bytes())
            kind = np.dtype(TYPES[TYPES.index(about["type"])])
            train, held_out = (self._mapped(half, kind, int(about[half])) for half in HALVES)
            largest = int(about["largest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(self.path / ABOUT)
        return Split(train, held_out, largest)

    def _mapped(self, half: str, kind: np.dtype[Any], count: int) -> Tokens:
        with (self.path / f"{half}.bin").open("rb") as file:
            if os.fstat(file.fileno()).st_size != count * kind.itemsize:
                raise ValueError("cut off")
            # The map keeps a copy of the descriptor, and so the lock. Some network disks have none.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH)
            return np.memmap(file, kind, mode="r", shape=(count,))

    def remove(self) -> None:
        """Remove what lies here, unless somebody has it mapped."""
        with suppress(OSError), (self.path / "train.bin").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.path)


class Spool:
    """Two halves of tokens that grow: in memory, and beyond a bound in the files of an entry."""

    def __init__(self, entry: Entry | None = None, bound: int = MEMORY_BYTES) -> None:
        """entry: where the files go; None keeps everything in memory. bound: in bytes."""
        self._entry = entry
        self._bound = bound
        self._files: list[BinaryIO] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was added."""
        self.counts = [0, 0]
        self._largest = 0
        self._type = ""
        self._waiting: tuple[list[Tokens], list[Tokens]] = ([], [])
        self._bytes = 0
        for file in self._files:
            file.truncate(0)

    def add(self, tokens: Tokens, *, held_out: bool) -> None:
        """Add to the end of one half; raises TrainingError where the disk does not take it, and
        BuiltMeanwhile."""
        if not len(tokens):
            return
        self.counts[held_out] += len(tokens)
        self._largest = max(self._largest, int(tokens.max()))
        self._type = tokens.dtype.newbyteorder("<").str
        self._waiting[held_out].append(tokens)
        self._bytes += tokens.nbytes
        if self._entry is not None and self._bytes > self._bound:
            with _explained(self._entry):
                self._write(self._entry)

    def finish(self) -> Split:
        """Return what was added, which is some in both halves; raises TrainingError."""
        if self._entry is None or not self._files:
            train, held_out = (_joined(parts) for parts in self._waiting)
            return Split(train, held_out, self._largest)
        with _explained(self._entry):
            self._write(self._entry)
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
            counts = dict(zip(HALVES, self.counts, strict=True))
            _publish(self._entry, {"type": self._type, **counts, "largest": self._largest})
        # From writing to reading, without a moment in which somebody may remove it.
        fcntl.flock(self._files[0], fcntl.LOCK_SH)
        found = self._entry.open()
        self.close()
        if found is None:
            raise TrainingError(f"{self._entry.path}: was written and cannot be read; try again")
        _tidy(self._entry)
        return found

    def close(self) -> None:
        """Let go of the files, and remove them where they were not finished."""
        if self._files and self._entry is not None:
            new = _new(self._entry)
            if _is_at(self._files[0], new / "train.bin"):
                shutil.rmtree(new, ignore_errors=True)
        for file in self._files:
            # What could not be written before cannot be written now.
            with suppress(OSError):
                file.close()
        self._files = []

    def _write(self, entry: Entry) -> None:
        if not self._files:
            self._files.append(_locked(entry))
            self._files.append((_new(entry) / "held_out.bin").open("ab"))
            for file in self._files:
                file.truncate(0)
            if entry.open() is not None:
                raise BuiltMeanwhile
        for file, parts in zip(self._files, self._waiting, strict=True):
            for tokens in parts:
                file.write(tokens.astype(self._type, copy=False).data)
            parts.clear()
        self._bytes = 0


def _locked(entry: Entry) -> BinaryIO:
    """Open the file that whoever writes the entry has locked; waits for somebody else who does.

    Raises BuiltMeanwhile where that one has finished.
    """
    path = _new(entry) / "train.bin"
    while True:
        if entry.open() is not None:
            raise BuiltMeanwhile
        # Whoever may not read the text shall not read its tokens.
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The directory gets its name, or goes, at any time.
        with suppress(FileNotFoundError):
            file = path.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, path):
                    return file
            except BlockingIOError:
                time.sleep(WAIT_S)
            file.close()


def _publish(entry: Entry, about: dict[str, Any]) -> None:
    new = _new(entry)
    with (new / ABOUT).open("w", encoding="utf-8") as file:
        json.dump(about, file)
        file.flush()
        os.fsync(file.fileno())
    _synchronise(new)
    # What has the name already cannot be read, or it would not be written anew.
    shutil.rmtree(entry.path, ignore_errors=True)
    new.rename(entry.path)
    _synchronise(entry.cache)


def _tidy(entry: Entry) -> None:
    """Remove what nobody will ask for: what this source held before, what nobody has opened for
    long, and what processes that were killed have left."""
    source, others = entry.path.name.split("-")[0], []
    for path in entry.cache.glob("*-*"):
        if path.suffix == NEW or path.name.startswith(source):
            if path != entry.path:
                Entry(entry.cache, path.name).remove()
            continue
        with suppress(OSError):
            others.append(((path / ABOUT).stat().st_mtime, path.name))
    oldest = time.time() - UNUSED_DAYS_MAX * 86400
    for position, (opened, name) in enumerate(sorted(others, reverse=True), start=1):
        if opened < oldest or position >= ENTRIES_MAX:
            Entry(entry.cache, name).remove()


@contextmanager
def _explained(entry: Entry) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        elsewhere = "set token_cache under [train] to a directory on "
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            elsewhere = f"free some room, or {elsewhere}a larger disk"
        else:
            elsewhere += "this machine's own disk that can be written to"
        raise TrainingError(
            f"the tokens cannot be kept in {entry.cache}: {error.strerror}; {elsewhere}"
        ) from None


def _new(entry: Entry) -> Path:
    return entry.path.with_name(entry.path.name + NEW)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _joined(parts: list[Tokens]) -> Tokens:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)


def _synchronise(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]
