"""What lies in a node's directory: the key, its votes, the genesis, the text (`shoal doctor`).

Facts are collected by reading alone. Files without a name, which vanish when they are closed, show
whether something can be written.
"""

import hashlib
import json
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from shoal.node.backup import KEY_NAME, backup_warnings
from shoal.node.doctor_findings import (
    Finding,
    fine,
    from_error,
    not_checked,
    problem,
    warning,
)
from shoal.node.errors import UnreachableError, UserError
from shoal.node.hub import local_data
from shoal.node.identity import Identity, short
from shoal.training.documents import FileDocuments
from shoal.training.errors import TrainingError
from shoal.training.task_name import TASK_KEY

GENESIS_DOMAIN = b"SHOAL-GENESIS\x01"
DOCUMENT_BYTES_MAX = 1 << 20
# So much text is looked at, for so long: enough to know that there is some.
TEXT_BYTES_MAX = 1 << 20
TEXT_S_MAX = 3.0
SQLITE_MAGIC = b"SQLite format 3\x00"


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """The key file: its mode and owner, None where there is none; what loading it said."""

    path: str
    mode: int | None
    owner: int = 0
    me: int = 0
    error: UserError | None = None
    node_id: bytes = b""


def key_facts(directory: Path) -> tuple[KeyFacts, Identity | None]:
    """Look at a node's key, and load it where that is possible."""
    path = directory / KEY_NAME
    try:
        seen = path.stat()
    except OSError:
        return KeyFacts(str(path), None), None
    mode, me = stat.S_IMODE(seen.st_mode), os.geteuid()
    try:
        identity = Identity.load(path)
    except UserError as error:
        return KeyFacts(str(path), mode, seen.st_uid, me, error), None
    return KeyFacts(str(path), mode, seen.st_uid, me, None, identity.node_id), identity


def judge_key(facts: KeyFacts) -> Finding:
    """Whether the node can use its key and nobody else can read it."""
    if facts.mode is None:
        return problem(
            "key",
            f"there is no {facts.path}",
            "bring it back with `shoal identity import FILE DIR`, or make a node with `shoal init` "
            "or `shoal join`",
        )
    if facts.owner != facts.me:
        who = f"{facts.path} belongs to user {facts.owner}, and this is user {facts.me}"
        fix = f"run the node and this command as user {facts.owner}, or chown {facts.path}"
        # The superuser can read it all the same, so the node may well run as its owner.
        return (warning if facts.me == 0 else problem)("key", who, fix)
    if facts.mode & 0o077:
        return problem(
            "key",
            f"others can read {facts.path} (mode {facts.mode:04o})",
            f"chmod 600 {facts.path}",
        )
    if facts.error is not None:
        return from_error("key", facts.error, f"restore {facts.path} from its backup")
    return fine("key", f"{short(facts.node_id)}, mode {facts.mode:04o}")


def judge_backup(directory: Path, node_id: bytes) -> Finding:
    """Whether a copy of the key is known of."""
    if found := backup_warnings(directory, node_id):
        return warning("key-backup", *_halves(found[0]))
    return fine("key-backup", "there is a copy of this key")


def _halves(line: str) -> tuple[str, str]:
    what, _, fix = line.partition("; ")
    return what, fix


@dataclass(frozen=True, slots=True)
class VoteFacts:
    """The memory of votes. boots: starts of this key that were noted; head: the first bytes."""

    path: str
    boots: int | None
    exists: bool
    head: bytes


def vote_facts(directory: Path) -> VoteFacts:
    """Look at the database from outside: opening it would write to it."""
    path = directory / "safety.db"
    try:
        boots = int((directory / "boots").read_text(encoding="ascii"))
    except FileNotFoundError:
        boots = 0
    except (OSError, ValueError):
        boots = None
    try:
        with path.open("rb") as file:
            return VoteFacts(str(path), boots, True, file.read(len(SQLITE_MAGIC)))
    except OSError:
        return VoteFacts(str(path), boots, path.exists(), b"")


def judge_votes(facts: VoteFacts) -> Finding:
    """Whether the node remembers what it has signed."""
    anew = "this key must not vote again: join the mesh with a new directory"
    if facts.boots is None:
        return problem("votes", f"the boots file beside {facts.path} is damaged", anew)
    if facts.boots and not facts.exists:
        return problem(
            "votes", f"this key has started {facts.boots} times and {facts.path} is missing", anew
        )
    if facts.exists and facts.head != SQLITE_MAGIC:
        return problem("votes", f"{facts.path} is no database, or cannot be read", anew)
    starts = "1 start" if facts.boots == 1 else f"{facts.boots} starts"
    return fine("votes", f"kept since {starts}" if facts.boots else "never started yet")


@dataclass(frozen=True, slots=True)
class GenesisFacts:
    """The first checkpoint, without its weights being read.

    peers: founders by id with their addresses; anchor_bytes: of the file; 0 where it is missing.
    """

    path: str
    mesh_id: bytes = b""
    anchor_bytes: int = 0
    tokenizer_missing: tuple[str, ...] = ()
    founders: tuple[tuple[bytes, str], ...] = ()
    error: str = ""
    # Whether it trains a task: then data is what that understands.
    task: bool = False

    @property
    def parameters(self) -> int:
        """Of the model; the anchor has four bytes for each."""
        return self.anchor_bytes // 4


def genesis_facts(directory: Path) -> GenesisFacts:
    """Read the document that names the mesh, and see whether the files it names are there."""
    folder = directory / "genesis"
    path = str(folder / "genesis.json")
    try:
        with (folder / "genesis.json").open("rb") as file:
            document = file.read(DOCUMENT_BYTES_MAX + 1)
        if len(document) > DOCUMENT_BYTES_MAX:
            return GenesisFacts(path, error="it is larger than a genesis can be")
        content = json.loads(document)
        founders = tuple((bytes.fromhex(f["id"]), str(f["address"])) for f in content["founders"])
        names = tuple(name for name in content["tokenizer"])
        missing = tuple(name for name in names if not (folder / "tokenizer" / name).is_file())
        anchor = folder / "anchor.bin"
        size = anchor.stat().st_size if anchor.is_file() else 0
        task = TASK_KEY in content["model"]
    except OSError as error:
        return GenesisFacts(path, error=error.strerror or "it cannot be read")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return GenesisFacts(path, error="it is not a genesis document")
    mesh_id = hashlib.sha256(GENESIS_DOMAIN + document).digest()
    return GenesisFacts(path, mesh_id, size, missing, founders, task=task)


def judge_genesis(facts: GenesisFacts) -> Finding:
    """Whether what names the mesh is here."""
    fix = "copy the genesis directory of another member, or join again"
    if facts.error:
        return problem("genesis", f"{facts.path}: {facts.error}", fix)
    if not facts.anchor_bytes or facts.anchor_bytes % 4:
        return problem("genesis", f"anchor.bin beside {facts.path} is missing or cut off", fix)
    if facts.tokenizer_missing:
        names = ", ".join(facts.tokenizer_missing[:3])
        return problem("genesis", f"tokenizer files beside {facts.path} are missing: {names}", fix)
    return fine(
        "genesis", f"mesh {facts.mesh_id.hex()[:16]}, a model of {facts.parameters:,} parameters"
    )


@dataclass(frozen=True, slots=True)
class TextFacts:
    """The node's text: bytes seen, whether that is all of it, and what reading it said."""

    source: str
    bytes_seen: int = 0
    all_seen: bool = False
    error: str = ""
    # Whether the hub has to be asked for it first.
    away: bool = False


def text_facts(source: str) -> TextFacts:
    """Read the beginning of a node's text; asks no hub for it."""
    if source.startswith("builtin"):
        shard = re.fullmatch(r"builtin:(\d{1,4})/(\d{1,4})", source)
        if shard is None or int(shard[1]) >= int(shard[2]):
            return TextFacts(source, error=f"there is no shard {source}; write builtin:I/N, I < N")
        return TextFacts(source, TEXT_BYTES_MAX)
    seen, until = 0, time.monotonic() + TEXT_S_MAX
    try:
        for document in FileDocuments.of(local_data(source, fetch=False)):
            seen += len(document.encode(errors="surrogatepass"))
            if seen >= TEXT_BYTES_MAX or time.monotonic() > until:
                return TextFacts(source, seen)
    except UnreachableError:
        return TextFacts(source, away=True)
    except (TrainingError, UserError) as error:
        return TextFacts(source, error=str(error))
    return TextFacts(source, seen, all_seen=True)


def judge_text(facts: TextFacts, *, sequence: int, enabled: bool) -> Finding:
    """Whether there is something to train on; a token is a byte of text, or more of them."""
    if not enabled:
        return not_checked("data", "this node does not train (train.enabled = false)")
    if facts.error:
        return from_error("data", UserError(facts.error), "set another data under [train]")
    if facts.away:
        return warning(
            "data",
            f"{facts.source} has not been fetched to this machine",
            "`shoal run` does so, and needs the network for it",
        )
    least = 2 * (sequence + 1)
    if facts.all_seen and facts.bytes_seen < least:
        return problem(
            "data",
            f"{facts.source} holds {facts.bytes_seen} bytes of text, and {least} tokens are needed "
            "to train on some and hold some out",
            "give it more text, or make sequence under [train] smaller",
        )
    if facts.source.startswith("builtin"):
        return fine("data", facts.source)
    size = f"{facts.bytes_seen / 1024:,.0f} KiB"
    return fine("data", f"{facts.source}: {size}" + ("" if facts.all_seen else " and more"))
