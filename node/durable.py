"""Files that are on the disk when they are there: written aside, synchronised, then named."""

import os
from pathlib import Path

TEMPORARY = ".new"


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, on the disk before it returns."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    settle(temporary, path)


def settle(temporary: Path, path: Path) -> None:
    """Give a file that is on the disk its final name, durably."""
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk before it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
