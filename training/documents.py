"""Documents from files: plain text, JSON lines, Parquet, and what `datasets` has saved to a disk.

A document is a string. A text file becomes pieces of about 16 KiB, cut between lines, so that one
long file has something to hold out too; a line of JSONL, a row of Parquet and one of a dataset are
a document each.
Every problem with a file is a TrainingError that names the file and says what to do.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.training.errors import TrainingError

PIECE_CHARACTERS = 16 * 1024
TEXT_FIELD = "text"
TRAIN_SPLIT = "train"
# What makes a directory one that `save_to_disk` wrote: of a dataset, or of several splits.
DATASET_FILES = ("dataset_info.json", "state.json")
SPLITS_FILE = "dataset_dict.json"
# What is read in a directory as plain text; a file that is named itself may end in anything.
TEXT_SUFFIXES = re.compile(
    r"\.(txt|text|md|rst|tex|org|adoc|html?|xml|csv|tsv|log|json|ya?ml|toml|ini|pyi?|c|h|cc|cpp|hpp"
    r"|rs|go|java|kt|[jt]sx?|rb|pl|sh|lua|sql|swift)"
)


def file_documents(path: Path) -> Iterator[str]:
    """Yield the documents of a file, or of every file in a directory that can hold text.

    A directory that `datasets` wrote is one dataset; of its splits, the one to train on is read.
    Raises TrainingError where something cannot be read or is not what its name says.
    """
    try:
        is_directory = path.is_dir()
        if not is_directory and not path.exists():
            raise TrainingError(f"{path}: does not exist; data is builtin:I/N, a file or directory")
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from None
    if is_directory and _is_dataset(path):
        yield from _dataset_documents(path)
        return
    files = _files_below(path) if is_directory else [path]
    for file in files:
        try:
            yield from _one_file(file)
        except OSError as error:
            raise TrainingError(f"{file}: {error.strerror}; check its permissions") from None
        except UnicodeDecodeError as error:
            raise TrainingError(
                f"{file}: not UTF-8 text (byte {error.start} of a chunk); convert it, for "
                "example with iconv"
            ) from None


def cut_into_pieces(text: str) -> Iterator[str]:
    """Yield `text` in pieces of about 16 KiB that end with a line, where lines are not longer."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        line_end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1
        end = line_end or start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _files_below(directory: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise TrainingError(f"{error.filename}: {error.strerror}; check its permissions")

    found = []
    for folder, folders, names in os.walk(directory, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and _reader(Path(name)) is not None:
                found.append(Path(folder) / name)
    if not found:
        raise TrainingError(
            f"{directory}: holds no text; .txt, .md, .py and the like, .jsonl and .parquet are read"
        )
    return found


def _one_file(path: Path) -> Iterator[str]:
    reader = _reader(path) or _text_documents
    return reader(path)


def _reader(path: Path) -> Callable[[Path], Iterator[str]] | None:
    suffix = path.suffix.lower()
    if TEXT_SUFFIXES.fullmatch(suffix):
        return _text_documents
    return {".jsonl": _jsonl_documents, ".parquet": _parquet_documents}.get(suffix)


def _text_documents(path: Path) -> Iterator[str]:
    return cut_into_pieces(path.read_text(encoding="utf-8"))


def _jsonl_documents(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                raise TrainingError(f"{path}:{number}: not a JSON object") from None
            text = record.get(TEXT_FIELD) if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise TrainingError(
                    f'{path}:{number}: no string under "{TEXT_FIELD}"; each line is an object '
                    f'like {{"{TEXT_FIELD}": "..."}}'
                )
            yield text


def _parquet_documents(path: Path) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise TrainingError(
            f"{path}: reading Parquet needs pyarrow; pip install 'shoal[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as table:
            if TEXT_FIELD not in table.schema_arrow.names:
                raise TrainingError(
                    f'{path}: no column "{TEXT_FIELD}"; it has '
                    f"{', '.join(table.schema_arrow.names[:8])}"
                )
            for batch in table.iter_batches(columns=[TEXT_FIELD]):
                for text in batch.column(0).to_pylist():
                    if isinstance(text, str):
                        yield text
    except ArrowException as error:
        raise TrainingError(f"{path}: not a readable Parquet file: {error}") from None


def _is_dataset(directory: Path) -> bool:
    whole = all((directory / name).is_file() for name in DATASET_FILES)
    return whole or (directory / SPLITS_FILE).is_file()


def _dataset_documents(directory: Path) -> Iterator[str]:
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
    if TEXT_FIELD not in found.column_names:
        raise TrainingError(
            f'{directory}: no column "{TEXT_FIELD}"; it has {", ".join(found.column_names[:8])}'
        )
    for batch in found.select_columns([TEXT_FIELD]).iter(batch_size=1000):
        for text in batch[TEXT_FIELD]:
            if isinstance(text, str):
                yield text
