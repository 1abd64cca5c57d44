"""The machine and what is installed on it (`shoal doctor`)."""

import importlib.metadata
import re
import resource
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.node.doctor_findings import Finding, fine, not_checked, problem, warning

PYTHON_LEAST = (3, 11)
# Before it a database with several writers could be damaged (the WAL-reset fault).
SQLITE_LEAST = (3, 51, 3)
# Two processes with torch in them, without a model.
PROCESSES_BYTES = 1 << 30
# Of each parameter: the anchors and residuals of the node (20), the memory that both processes
# share (16), weights, gradients and two moments where the model trains (16).
NODE_BYTES, SHARED_BYTES, TRAINING_BYTES = 20, 16, 16
# Links, channels, chunks and the database; links of so many members come on top.
FILES_LEAST, FILES_GOOD = 256, 1024
# A new version is what most of the fixes below ask for.
INSTALL = "run `make install` again, or pip install --upgrade shoal"


def version_numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.6.0+cpu is (2, 6, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", text)[0]))


def at_least(version: str, least: tuple[int, ...]) -> bool:
    """Whether a version is not older than that."""
    numbers = version_numbers(version)
    return numbers + (0,) * (len(least) - len(numbers)) >= least


def judge_python(version: tuple[int, ...]) -> Finding:
    """Whether this Python can run Shoal."""
    text = ".".join(map(str, version))
    if version[:2] < PYTHON_LEAST:
        return problem("python", f"Python {text} is too old", "install Python 3.11 or newer")
    return fine("python", text)


@dataclass(frozen=True, slots=True)
class Library:
    """name: of the distribution; wanted: the lowest version; found: "" where it is missing."""

    name: str
    wanted: str
    found: str


def installed_libraries() -> list[Library]:
    """Everything that Shoal's own metadata asks for; nothing where it was never installed."""
    try:
        requirements = importlib.metadata.requires("shoal") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [each for each in map(_library, requirements) if each is not None]


def _library(requirement: str) -> Library | None:
    wanted = re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", requirement)
    marker = requirement.partition(";")[2]
    if wanted is None or "extra" in marker or ("win32" in marker and sys.platform == "win32"):
        return None
    try:
        found = importlib.metadata.version(wanted[1])
    except importlib.metadata.PackageNotFoundError:
        found = ""
    return Library(wanted[1], wanted[2], found)


def judge_libraries(libraries: Iterable[Library]) -> Finding:
    """Whether everything is there, and new enough."""
    known = list(libraries)
    if not known:
        return not_checked(
            "libraries", "Shoal is not installed here, so nothing says what it needs"
        )
    missing = [each.name for each in known if not each.found]
    old = [
        f"{each.name} {each.found} (at least {each.wanted})"
        for each in known
        if each.found and not at_least(each.found, version_numbers(each.wanted))
    ]
    if missing:
        return problem("libraries", f"not installed: {', '.join(missing)}", INSTALL)
    if old:
        return problem("libraries", f"too old: {', '.join(old)}", INSTALL)
    shown = {each.name: each.found for each in known}
    names = [f"{name} {shown[name]}" for name in ("grpcio", "cryptography") if name in shown]
    return fine("libraries", f"all {len(known)} are new enough: {', '.join(names)}, ...")


def judge_sqlite(version: str) -> Finding:
    """Whether the SQLite that votes go to is sound."""
    if not at_least(version, SQLITE_LEAST):
        return problem(
            "sqlite",
            f"SQLite {version} has a fault that can damage a database; 3.51.3 has not",
            "pip install --upgrade apsw, built with its own SQLite",
        )
    return fine("sqlite", f"{version}, of apsw")


def judge_protobuf(implementation: str, version: str) -> Finding:
    """Whether protobuf reads messages in C, with its limits."""
    if implementation != "upb":
        return warning(
            "protobuf",
            f"protobuf {version} runs in its {implementation} implementation, which is slow and "
            "reads what upb refuses",
            "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION and install protobuf as a wheel",
        )
    return fine("protobuf", f"{version}, {implementation}")


def check_signatures() -> str:
    """Sign with one library and check with libsodium; returns what is wrong, "" for nothing."""
    from shoal.node.identity import Identity, verify

    identity = Identity.generate()
    signature = identity.sign(b"SHOAL-DOCTOR")
    if not verify(identity.node_id, b"SHOAL-DOCTOR", signature):
        return "libsodium refuses a good signature"
    if verify(identity.node_id, b"SHOAL-DOCTOR.", signature):
        return "libsodium accepts a bad signature"
    return ""


def judge_signatures(error: str, versions: str) -> Finding:
    """Whether what makes signatures and what checks them agree."""
    if error:
        return problem("signatures", error, f"pip install --force-reinstall pynacl, or {INSTALL}")
    return fine("signatures", versions)


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Bytes. available: without swapping; limit: of this container, 0 for none; shared_*: of the
    memory file system that both processes use, 0 where there is none."""

    total: int
    available: int
    limit: int = 0
    shared_total: int = 0
    shared_free: int = 0


def memory_facts() -> MemoryFacts:
    """Ask the machine."""
    import psutil

    memory = psutil.virtual_memory()
    shared = Path("/dev/shm")
    usage = shutil.disk_usage(shared) if shared.is_dir() else None
    return MemoryFacts(
        total=memory.total,
        available=memory.available,
        limit=container_limit(),
        shared_total=usage.total if usage else 0,
        shared_free=usage.free if usage else 0,
    )


def container_limit(
    files: Mapping[str, Path] | None = None,
) -> int:
    """The memory that this container may use, 0 where it has no limit of its own."""
    for path in (files or _LIMITS).values():
        try:
            limit = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        # Without a limit the first version of cgroups writes a number that no machine has.
        if limit < 1 << 60:
            return limit
    return 0


_LIMITS = {
    "2": Path("/sys/fs/cgroup/memory.max"),
    "1": Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
}


def judge_memory(
    facts: MemoryFacts, parameters: int, *, trains: bool, running: bool | None
) -> Finding:
    """Whether the model fits."""
    each = NODE_BYTES + (SHARED_BYTES + TRAINING_BYTES if trains else 0)
    needed = PROCESSES_BYTES + each * parameters
    total = min(facts.total, facts.limit or facts.total)
    have = f"{_gib(facts.available)} of {_gib(total)} are free"
    if total < needed:
        return problem(
            "memory",
            f"a model of {parameters:,} parameters needs about {_gib(needed)}, and there are "
            f"{_gib(total)}",
            "give this machine or container more memory",
        )
    # What a running node needs it has; then only a little must be left.
    least = total // 20 if running else min(needed, total)
    if facts.available < least:
        return warning(
            "memory",
            f"{have}, and {'5 % should be' if running else f'about {_gib(least)} are needed'}",
            "stop something else on this machine",
        )
    return fine("memory", f"{have}; the node needs about {_gib(needed)}")


def judge_shared_memory(
    facts: MemoryFacts, parameters: int, *, trains: bool, running: bool | None
) -> Finding:
    """Whether the memory that both processes map has room; without it the node dies of SIGBUS."""
    if not trains:
        return not_checked("shared-memory", "this node does not train")
    if not facts.shared_total:
        return fine("shared-memory", "there is no /dev/shm; a temporary file is used")
    needed = SHARED_BYTES * parameters
    if facts.shared_total < needed or (not running and facts.shared_free < needed):
        return problem(
            "shared-memory",
            f"/dev/shm has {_gib(facts.shared_free)} free, and the training process shares "
            f"{_gib(needed)} with the node there",
            f"make it larger: docker run --shm-size {needed // (1 << 20) + 64}m, or shm_size in "
            "the compose file",
        )
    return fine("shared-memory", f"{_gib(facts.shared_free)} free in /dev/shm")


def open_files_limit() -> int:
    """How many files and connections a process of this user may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 62 if soft == resource.RLIM_INFINITY else soft


def judge_open_files(limit: int) -> Finding:
    """Whether there are enough for links to the other members."""
    fix = "raise it: ulimit -n 4096, or LimitNOFILE=4096 in the service's unit"
    what = f"a process may open {limit} files"
    if limit < FILES_LEAST:
        return problem("open-files", f"{what}, and a node needs {FILES_LEAST} or more", fix)
    if limit < FILES_GOOD:
        return warning("open-files", f"{what}, too few for a mesh of hundreds of members", fix)
    return fine("open-files", "no limit" if limit == 1 << 62 else str(limit))


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 29 else f"{count / (1 << 20):.0f} MiB"
