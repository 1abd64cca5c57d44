"""The disk below a node's directory: room, honesty and speed (`shoal doctor`).

Every vote waits for an fsync, so its time is measured where the votes will lie, with a file that
has no name and is gone when it is closed.
"""

import errno
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from shoal.node.config import RetentionSettings
from shoal.node.doctor_findings import Finding, fine, not_checked, problem, warning

FSYNC_WARNING_MS = 20.0
_FSYNCS = 15
_FSYNC_S_MAX = 3.0
_WRITE_BYTES = 4096
# What the database, the logs and pending deltas take besides the checkpoints.
BESIDES_BYTES = 256 << 20
_FILES_COUNTED_MAX = 50_000
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"}
_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """directory: that exists; write_error: why nothing could be written, "" where it could.

    free, total, used: bytes, where `used` is what the node's own files take; kind: of the file
    system, "" where nobody knows; fsync_ms: each one measured.
    """

    directory: str
    is_directory: bool = True
    write_error: str = ""
    free: int = 0
    total: int = 0
    used: int = 0
    kind: str = ""
    fsync_ms: tuple[float, ...] = ()


def disk_facts(directory: Path, *, count: bool = True) -> DiskFacts:
    """Measure; blocks for a few seconds at most where the disk answers at all.

    count: whether the files below are a node's, so that their size says how much more it needs.
    """
    if not directory.is_dir():
        return DiskFacts(str(directory), is_directory=False)
    usage = shutil.disk_usage(directory)
    write_error, times = _measure(directory)
    return DiskFacts(
        directory=str(directory),
        write_error=write_error,
        free=usage.free,
        total=usage.total,
        used=_used_below(directory) if count else 0,
        kind=file_system_of(directory),
        fsync_ms=times,
    )


def _measure(directory: Path) -> tuple[str, tuple[float, ...]]:
    times: list[float] = []
    until = time.monotonic() + _FSYNC_S_MAX
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            while len(times) < _FSYNCS and time.monotonic() < until:
                file.write(os.urandom(_WRITE_BYTES))
                began = time.perf_counter()
                os.fsync(file.fileno())
                times.append((time.perf_counter() - began) * 1000)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return ("full" if full else error.strerror or type(error).__name__), tuple(times)
    return "", tuple(times)


def _used_below(directory: Path) -> int:
    """Bytes of the files below; of the first many, where there are very many."""
    total = counted = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
            counted += 1
            if counted >= _FILES_COUNTED_MAX:
                return total
    return total


def file_system_of(directory: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system that a directory lies on; "" where nobody says."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best, kind = directory.resolve(), -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # The kernel writes a blank in a path as \040.
        point = Path(fields[1].replace("\\040", " "))
        # Of two on one point the later one lies on top.
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def judge_directory(facts: DiskFacts) -> Finding:
    """Whether the node can write where it lives."""
    if not facts.is_directory:
        return problem(
            "directory",
            f"there is no directory {facts.directory}",
            "name a node's directory; `shoal init` and `shoal join` make one",
        )
    if facts.write_error == "full":
        return problem("directory", f"{facts.directory}: the disk is full", "free some space on it")
    if facts.write_error:
        return problem(
            "directory",
            f"{facts.directory} cannot be written to: {facts.write_error}",
            "run the node as the user that the directory belongs to, on a file system that can be "
            "written to",
        )
    return fine("directory", f"{facts.directory} can be written to")


def space_needed(anchor_bytes: int, retention: RetentionSettings) -> int:
    """What a node's directory may grow to, in bytes.

    The genesis; the newest checkpoints and one more while it is written, each with the anchor and
    the weights as safetensors; and of the older ones at most every piece.
    """
    whole = 2 * (retention.keep_whole + 1)
    archived = retention.archived_max + len(retention.pinned)
    return anchor_bytes * (1 + whole + archived) + BESIDES_BYTES


def judge_space(facts: DiskFacts, anchor_bytes: int, retention: RetentionSettings) -> Finding:
    """Whether there is room for the next checkpoint, and for all that retention keeps."""
    free = _mib(facts.free)
    next_one = 2 * anchor_bytes + (32 << 20)
    if facts.free < next_one:
        return problem(
            "disk-space",
            f"{free} free at {facts.directory}, and the next checkpoint needs {_mib(next_one)}",
            "free some space, or move the directory to a larger disk",
        )
    further = max(0, space_needed(anchor_bytes, retention) - facts.used)
    if facts.free < further:
        return warning(
            "disk-space",
            f"{free} free at {facts.directory}, and checkpoints may come to take {_mib(further)} "
            "more",
            "free some space, or lower archived_max under [retention] (the same on all nodes)",
        )
    return fine("disk-space", f"{free} free; at most {_mib(further)} more will be needed")


def judge_file_system(facts: DiskFacts) -> Finding:
    """Whether what is written stays written."""
    kind = facts.kind
    move = "keep the node's directory on a local disk"
    if not kind:
        return not_checked("file-system", "this machine does not tell what kind it is")
    if kind in _MEMORY:
        return warning(
            "file-system",
            f"{facts.directory} is in memory ({kind}): a restart of the machine loses the votes, "
            "and with them the membership",
            move,
        )
    if kind == "overlay":
        return warning(
            "file-system",
            f"{facts.directory} is in a container's own layer (overlay), which goes with it",
            "mount a volume there",
        )
    if kind in _NETWORK or kind.startswith("fuse"):
        return warning(
            "file-system",
            f"{facts.directory} is on {kind}, where locks and fsync may not do what they promise",
            move,
        )
    return fine("file-system", kind)


def judge_fsync(facts: DiskFacts) -> Finding:
    """Whether fsync works, and soon enough for votes to wait for it."""
    if facts.write_error or not facts.fsync_ms:
        return not_checked("fsync", "nothing could be written")
    middle = median(facts.fsync_ms)
    if middle > FSYNC_WARNING_MS:
        return warning(
            "fsync",
            f"an fsync takes {middle:.0f} ms at {facts.directory} (median of "
            f"{len(facts.fsync_ms)}), and every vote waits for one",
            "move the directory to a faster disk, best an SSD, or stop what keeps this one busy",
        )
    return fine("fsync", f"{middle:.1f} ms, median of {len(facts.fsync_ms)}")


def _mib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
