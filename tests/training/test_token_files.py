"""Tokens that outgrow memory: the same as in memory, in files that others find and can trust."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.training import documents
from shoal.training.data import Corpus, load, split_held_out
from shoal.training.errors import TrainingError
from shoal.training.token_files import Entry, Spool
from shoal.training.tokenizer import ByteTokenizer, Tokens


class Counting(ByteTokenizer):
    """Counts the texts that it is given."""

    def __init__(self) -> None:
        self.texts = 0

    def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
        self.texts += len(texts)
        return super().encode_all(texts)


BYTES = ByteTokenizer()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {number} of a long book\n" for number in range(20_000)))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def read(book: Path, cache: Path, tokenizer: ByteTokenizer = BYTES) -> Corpus:
    """The book, of which 10,000 bytes may be in memory."""
    return load(str(book), tokenizer, cache=cache, bound=10_000)


def same(one: Corpus, other: Corpus) -> bool:
    halves = ((one.train, other.train), (one.held_out, other.held_out))
    return all(np.array_equal(left, right) for left, right in halves)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(), max_size=8), st.integers(0, 60))
def test_files_hold_what_memory_would(texts: list[str], bound: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        in_memory = split_held_out(texts, BYTES)
        on_disk = split_held_out(texts, BYTES, Spool(Entry(Path(cache), "a-b"), bound))
        assert np.array_equal(in_memory.train, on_disk.train)
        assert np.array_equal(in_memory.held_out, on_disk.held_out)
        assert in_memory.largest == on_disk.largest
        assert not list(Path(cache).glob("*.new"))


def test_windows_are_the_same_from_files(book: Path, cache: Path) -> None:
    small, large = load(str(book), BYTES), read(book, cache)
    assert isinstance(large.train, np.memmap) and not isinstance(small.train, np.memmap)
    assert same(small, large) and small.largest == large.largest == ord("o")
    where = {"seed": 1, "round": 2, "step": 3, "batch": 4, "sequence": 16}
    assert small.batch(**where).equal(large.batch(**where))
    large.require(sequence=16, vocabulary_size=112)
    with pytest.raises(TrainingError, match="token 111, but the model's vocabulary has 111"):
        large.require(sequence=16, vocabulary_size=111)


def test_a_small_source_leaves_no_files(book: Path, cache: Path) -> None:
    load(str(book), BYTES, cache=cache)
    assert not cache.exists()


def test_the_second_start_tokenises_nothing_and_a_changed_file_is_noticed(
    book: Path, cache: Path
) -> None:
    first = read(book, cache)
    counting = Counting()
    assert same(read(book, cache, counting), first) and counting.texts == 0
    with book.open("a") as file:
        file.write("one line more\n")
    longer = read(book, cache, counting)
    assert counting.texts > 0 and same(longer, load(str(book), BYTES))


@pytest.mark.parametrize("damage", ["train.bin", "held_out.bin", "about.json"])
def test_a_file_that_was_cut_off_is_written_anew(book: Path, cache: Path, damage: str) -> None:
    read(book, cache)
    (entry,) = cache.iterdir()
    with (entry / damage).open("r+b") as file:
        file.truncate(20)
    assert same(read(book, cache), load(str(book), BYTES))
    assert [each.name for each in cache.iterdir()] == [entry.name]


def test_of_many_that_want_the_same_one_writes_it(book: Path, cache: Path) -> None:
    counting = Counting()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read(book, cache, counting), range(4)))
    assert all(same(each, found[0]) for each in found)
    (entry,) = cache.iterdir()
    assert {each.name for each in entry.iterdir()} == {"about.json", "held_out.bin", "train.bin"}
    assert entry.stat().st_mode & 0o077 == 0, "others can read the tokens"


def test_what_a_killed_process_left_is_never_taken_for_whole(book: Path, cache: Path) -> None:
    read(book, cache)
    (entry,) = cache.iterdir()
    # Killed after the last byte, before the name.
    entry.rename(cache / f"{entry.name}.new")
    (cache / f"{entry.name}.new" / "train.bin").write_bytes(b"x" * 1000)
    left = cache / "0123-4567.new"
    left.mkdir()
    (left / "train.bin").write_bytes(b"x" * 1000)
    assert same(read(book, cache), load(str(book), BYTES))
    assert [each.name for each in cache.iterdir()] == [entry.name]


def test_what_nobody_will_ask_for_goes_but_never_under_somebody_who_has_it(
    book: Path, cache: Path
) -> None:
    other = book.with_name("other.txt")
    other.write_text(book.read_text())
    read(other, cache)
    held = read(book, cache)
    start = bytes(held.train[:20])
    book.write_text(book.read_text() + "second edition\n")
    read(book, cache)
    assert len(list(cache.iterdir())) == 3
    assert bytes(held.train[:20]) == start
    del held
    book.write_text(book.read_text() + "third edition\n")
    read(book, cache)
    assert len(list(cache.iterdir())) == 2
    # The other source's, long unread, goes with the next that is written.
    for each in cache.glob("*/about.json"):
        os.utime(each, (0, 0))
    book.write_text(book.read_text() + "fourth edition\n")
    read(book, cache)
    assert len(list(cache.iterdir())) == 1


def test_a_disk_that_takes_no_more_is_one_line(
    book: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"No space left.*; free some room, or set token_cache"):
        read(book, cache)
    assert not list(cache.iterdir())
    with pytest.raises(TrainingError, match=r"Not a directory; set token_cache under \[train\]"):
        read(book, book / "cache")


def test_reading_says_how_far_it_is(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "TELL_S", 0.0)
    told: list[tuple[int, int]] = []
    load(str(book), BYTES, tell=lambda done, of: told.append((done, of)))
    size = book.stat().st_size
    assert told == sorted(told) and told[-1] == (size, size)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from shoal.training.data import load
from shoal.training.tokenizer import ByteTokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

before = peak()
corpus = load(sys.argv[1], ByteTokenizer(), cache=Path(sys.argv[2]), bound=8 << 20)
print(len(corpus.train) + len(corpus.held_out) >> 20, peak() - before)
"""
    with (tmp_path / "big.txt").open("w") as file:
        for number in range(100):
            file.write(f"{number} hundreds of lines of no great interest, but many\n" * 19_000)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big.txt"), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    text_mib, grown_mib = map(int, done.stdout.split())
    assert text_mib > 90 and grown_mib < 40, done.stdout
