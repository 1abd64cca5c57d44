"""Documents from files: plain text, JSON lines (.gz and .zst too), Parquet, and what `datasets` has
saved to a disk.

A document is a string. A text file becomes pieces of about 16 KiB, cut between lines, so that one
long file has something to hold out too; a line of JSONL, a row of Parquet and one of a dataset are
a document each. They are read one after another: no more than one of them, or a block of a file,
is in memory, however large the file is.
Every problem with a file is a TrainingError that names the file and says what to do.
"""

import gzip
import io
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, BinaryIO, Self, cast

import zstandard

from shoal.training.errors import TrainingError

PIECE_CHARACTERS = 16 * 1024
# How much of a text file is read at once.
BLOCK_CHARACTERS = 256 * 1024
# A longer line of JSON is refused: a document is tokenised as a whole, and a compressed file can
# hold one that no memory does.
LINE_CHARACTERS_MAX = 16 * 1024 * 1024
# Rows of Parquet and of datasets that are in memory together.
ROWS = 256
TEXT_FIELD = "text"
TRAIN_SPLIT = "train"
# What makes a directory one that `save_to_disk` wrote: of a dataset, or of several splits.
DATASET_FILES = ("dataset_info.json", "state.json")
SPLITS_FILE = "dataset_dict.json"
TELL_S = 1.0
# How many bytes of the files have been read, and how many there are.
Tell = Callable[[int, int], object]
OPTIONS = re.compile(r"\?((?:text|files)=[^?&]+(?:&(?:text|files)=[^?&]+)*)$")
# What is read in a directory as plain text; a file that is named itself may end in anything.
TEXT_SUFFIXES = re.compile(
    r"\.(txt|text|md|rst|tex|org|adoc|html?|xml|csv|tsv|log|json|ya?ml|toml|ini|pyi?|c|h|cc|cpp|hpp"
    r"|rs|go|java|kt|[jt]sx?|rb|pl|sh|lua|sql|swift)"
)


@dataclass(slots=True)
class FileDocuments:
    """The documents of a file, or of every file in a directory that can hold text, in their order;
    they can be gone through more than once.

    A directory that `datasets` wrote is one dataset; of its splits, the one to train on is read.
    column: where JSONL, Parquet and datasets have the text. patterns: which files of a directory
    are read, by their paths in it, as in a shell but that * goes across "/"; () is all that hold
    text. tell: told about once a second how far the reading is.
    Everything here raises TrainingError where something cannot be read or is not what its name
    says.
    """

    path: Path
    column: str = TEXT_FIELD
    patterns: tuple[str, ...] = ()
    tell: Tell | None = None

    @classmethod
    def of(cls, source: str, tell: Tell | None = None) -> Self:
        """Take `source` as a path, which may end with ?text=COLUMN, ?files=PATTERN,PATTERN or
        both, joined by &."""
        found = OPTIONS.search(source)
        if found is None:
            return cls(Path(source), tell=tell)
        options = dict(each.split("=", 1) for each in found[1].split("&"))
        patterns = tuple(each for each in options.get("files", "").split(",") if each)
        path = Path(source[: found.start()])
        return cls(path, options.get("text", TEXT_FIELD), patterns, tell)

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells these documents from others, besides the content of the files."""
        return (str(self.path.resolve()), self.column, *self.patterns)

    def stamps(self) -> list[tuple[str, int, int]]:
        """Return (path, bytes, time of its last change in ns) of each file that is read."""
        found = []
        for file in self._files():
            try:
                seen = file.stat()
            except OSError as error:
                raise TrainingError(f"{file}: {error.strerror}; check its permissions") from None
            found.append((str(file), seen.st_size, seen.st_mtime_ns))
        return found

    def __iter__(self) -> Iterator[str]:
        stamps = self.stamps()
        if self._is_dataset:
            yield from _dataset_documents(self.path, self.column)
            return
        total, before, told = sum(size for _, size, _ in stamps), 0, time.monotonic()
        for name, size, _ in stamps:
            path = Path(name)
            with _explained(path), path.open("rb") as file:
                for document in (_reader(path) or _text_documents)(path, file, self.column):
                    yield document
                    if self.tell is not None and time.monotonic() - told >= TELL_S:
                        told = time.monotonic()
                        self.tell(before + file.tell(), total)
            before += size

    @property
    def _is_dataset(self) -> bool:
        return not self.patterns and _is_dataset(self.path)

    def _files(self) -> list[Path]:
        try:
            is_directory = self.path.is_dir()
            if not is_directory and not self.path.exists():
                raise TrainingError(
                    f"{self.path}: does not exist; data is builtin:I/N, a file or directory"
                )
        except OSError as error:
            raise TrainingError(f"{self.path}: {error.strerror}") from None
        if not is_directory:
            return [self.path]
        found = [*_files_below(self.path)]
        if not self._is_dataset:
            found = [path for path in found if self._is_read(path)]
        if not found:
            which = f" in files like {' or '.join(self.patterns)}" if self.patterns else ""
            raise TrainingError(
                f"{self.path}: holds no text{which}; .txt, .md, .py and the like, .jsonl (.gz and "
                ".zst too) and .parquet are read"
            )
        return found

    def _is_read(self, path: Path) -> bool:
        name = path.relative_to(self.path).as_posix()
        chosen = not self.patterns or any(fnmatchcase(name, each) for each in self.patterns)
        return chosen and _reader(path) is not None


def cut_into_pieces(blocks: Iterable[str]) -> Iterator[str]:
    """Yield a text, which comes in blocks, in pieces of about 16 KiB that end with a line, where
    lines are not longer."""
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > PIECE_CHARACTERS:
            line_end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1
            end = line_end or start + PIECE_CHARACTERS
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise TrainingError(f"{path}: cannot be unpacked: {error}; get that file anew") from None
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}; check its permissions") from None
    except UnicodeDecodeError as error:
        raise TrainingError(
            f"{path}: not UTF-8 text (byte {error.start} of a chunk); convert it, for "
            "example with iconv"
        ) from None


def _files_below(directory: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise TrainingError(f"{error.filename}: {error.strerror}; check its permissions")

    for folder, folders, names in os.walk(directory, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _reader(path: Path) -> Callable[[Path, BinaryIO, str], Iterator[str]] | None:
    name = path.name.lower()
    if TEXT_SUFFIXES.fullmatch(path.suffix.lower()):
        return _text_documents
    if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        return _jsonl_documents
    return _parquet_documents if name.endswith(".parquet") else None


def _text_documents(path: Path, file: BinaryIO, column: str) -> Iterator[str]:
    del path, column
    with io.TextIOWrapper(file, encoding="utf-8") as text:
        yield from cut_into_pieces(iter(lambda: text.read(BLOCK_CHARACTERS), ""))


def _jsonl_documents(path: Path, file: BinaryIO, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise TrainingError(f"{path}:{number}: not a JSON object") from None
        text = record.get(column) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise TrainingError(
                f'{path}:{number}: no string under "{column}"; each line is an object '
                f'like {{"{column}": "..."}}, and data may end with ?text=NAME'
            )
        yield text


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    with io.TextIOWrapper(_unpacked(path, file), encoding="utf-8") as lines:
        while line := lines.readline(LINE_CHARACTERS_MAX + 1):
            if len(line) > LINE_CHARACTERS_MAX:
                raise TrainingError(
                    f"{path}: a line of more than {LINE_CHARACTERS_MAX:,} characters; make several "
                    "of its document"
                )
            yield line


def _unpacked(path: Path, file: BinaryIO) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.GzipFile(fileobj=file))
        case ".zst":
            # Its window is bounded by the library (128 MiB), and lines are above.
            return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    return file


def _parquet_documents(path: Path, file: BinaryIO, column: str) -> Iterator[str]:
    del file
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise TrainingError(
            f"{path}: reading Parquet needs pyarrow; pip install 'shoal[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as table:
            if column not in table.schema_arrow.names:
                raise TrainingError(
                    f'{path}: no column "{column}"; data may end with ?text=NAME, and it has '
                    f"{', '.join(table.schema_arrow.names[:8])}"
                )
            for batch in table.iter_batches(ROWS, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if isinstance(text, str):
                        yield text
    except ArrowException as error:
        raise TrainingError(f"{path}: not a readable Parquet file: {error}") from None


def _is_dataset(directory: Path) -> bool:
    whole = all((directory / name).is_file() for name in DATASET_FILES)
    return whole or (directory / SPLITS_FILE).is_file()


def _dataset_documents(directory: Path, column: str) -> Iterator[str]:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise TrainingError(
            f"{directory}: reading what datasets saved needs it; pip install 'shoal[datasets]'"
        ) from None
    try:
        found: Any = load_from_disk(str(directory))
    except Exception as error:  # The library raises nothing narrower.
        why = " ".join(str(error).split())[:300]
        raise TrainingError(f"{directory}: not a readable dataset: {why}") from None
    if isinstance(found, DatasetDict):
        if TRAIN_SPLIT not in found:
            raise TrainingError(
                f'{directory}: no split "{TRAIN_SPLIT}"; name one of {", ".join(list(found)[:8])}'
            )
        found = found[TRAIN_SPLIT]
    if column not in found.column_names:
        raise TrainingError(
            f'{directory}: no column "{column}"; data may end with ?text=NAME, and it has '
            f"{', '.join(found.column_names[:8])}"
        )
    for batch in found.select_columns([column]).iter(batch_size=ROWS):
        for text in batch[column]:
            if isinstance(text, str):
                yield text
