"""Copies of a node's key, locked with a passphrase, and whether there is one.

A key is all that a node is: without it its membership, and its vote, are lost. A copy is PKCS8 as
any OpenSSL reads it. It is read back before it counts, and what counts is noted beside the key, so
that a node without a copy can say so.

A key that is brought back to a directory without its votes must not vote: the node refuses to start
there (database.py), because nobody knows what the key has signed.
"""

import os
from pathlib import Path

from shoal.node.errors import DamagedError, UserError
from shoal.node.identity import Identity

KEY_NAME = "identity.key"
BACKUP_NAME = "identity.backup"
PASSPHRASE_CHARACTERS_MIN = 10
_FILE_BYTES_MAX = 1 << 16


def backup_warnings(directory: Path, node_id: bytes) -> list[str]:
    """What an operator should know about the copy of this key: nothing where there is one."""
    try:
        noted = (directory / BACKUP_NAME).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        noted = ""
    if noted == node_id.hex():
        return []
    return [
        "this node's key has no backup, and without the key its membership is lost; make one on "
        f"another disk: shoal identity export {directory} FILE"
    ]


def export_key(directory: Path, target: Path, passphrase: str) -> Identity:
    """Write the key of `directory` to a new file, locked with the passphrase; raises UserError."""
    identity = Identity.load(directory / KEY_NAME)
    if len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
        raise UserError(f"a passphrase has at least {PASSPHRASE_CHARACTERS_MIN} characters")
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{target} exists already; name a new file") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(identity.encrypted(passphrase.encode()))
        file.flush()
        os.fsync(file.fileno())
    if _read(target, passphrase).node_id != identity.node_id:
        raise DamagedError(f"{target} does not hold what was written to it; try another disk")
    (directory / BACKUP_NAME).write_text(f"{identity.node_id.hex()}\n", encoding="ascii")
    return identity


def import_key(source: Path, directory: Path, passphrase: str) -> Identity:
    """Bring a key back from its copy; raises UserError where a key is there, or for a wrong file.

    Where the key's votes are not there too, the directory is marked so that no node starts in it.
    """
    identity = _read(source, passphrase)
    if (directory / KEY_NAME).exists():
        raise UserError(f"{directory} has a key already; a node's key is never overwritten")
    directory.mkdir(parents=True, exist_ok=True)
    boots = directory / "boots"
    if not (directory / "safety.db").exists() and not boots.exists():
        boots.write_text("1\n")
    identity.write(directory / KEY_NAME)
    (directory / BACKUP_NAME).write_text(f"{identity.node_id.hex()}\n", encoding="ascii")
    return identity


def _read(path: Path, passphrase: str) -> Identity:
    try:
        with path.open("rb") as file:
            pem = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    try:
        if len(pem) > _FILE_BYTES_MAX:
            raise ValueError("too large")
        return Identity.decrypted(pem, passphrase.encode())
    except ValueError:
        raise UserError(
            f"{path} cannot be opened: the passphrase is wrong, or it is no copy of a key"
        ) from None
