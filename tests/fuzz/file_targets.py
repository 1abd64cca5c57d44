"""What is read from files: the genesis and settled state that a peer sends, the key, the settings.

Keys and settings are read from real files, since that is what the code under test does.
"""

import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

from shoal.gossip.errors import GossipError
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.settled import SettledState
from shoal.node.config import SECTIONS, Settings, document_settings, load_settings
from shoal.node.errors import PeerError, UserError
from shoal.node.genesis import parse_document
from shoal.node.identity import Identity
from shoal.node.verify_formats import parse_genesis
from tests.gossip.builders import epoch, member
from tests.node.certified import MESH as CERTIFIED

T = TypeVar("T")


@cache
def _directory() -> Path:
    """Gone with the process; in memory where there is such a place."""
    memory = "/dev/shm"
    holder = tempfile.TemporaryDirectory(
        prefix="shoal-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    )
    _holders.append(holder)
    return Path(holder.name)


_holders: list[tempfile.TemporaryDirectory[str]] = []


def _file(name: str, data: bytes) -> Path:
    path = _directory() / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def _require_one_line(error: UserError) -> None:
    assert "\n" not in str(error), "what a person reads is one line"


def genesis(data: bytes) -> None:
    """The document that begins a mesh. What a node takes, `shoal verify` reads alike."""
    try:
        found = parse_document(data)
    except PeerError:
        return
    again = parse_genesis(data)
    assert again.mesh_id == found.mesh_id
    assert again.schema_digest == found.schema.digest
    assert again.validators == found.validators
    assert again.tokenizer == found.tokenizer_hashes
    assert found.first_epoch().keys == found.validators
    assert found.epoch_parameters().to_bytes()


def genesis_seeds() -> list[bytes]:
    """A real one, and what is not even JSON."""
    document = CERTIFIED.genesis.document
    small = document.replace(b'"shape": [\n    500,\n    700\n   ]', b'"shape": [2]')
    return [document, small, b"[" * 2000, b'{"format": 1}']


def settled(data: bytes) -> None:
    """The settled state and the parameters of an epoch, which come with a checkpoint."""
    with suppress(GossipError):
        assert EpochParameters.from_bytes(data).to_bytes() == data
    try:
        found = SettledState.from_bytes(data)
    except GossipError:
        return
    assert found.to_bytes() == data
    assert found.height >= found.oldest_height


def settled_seeds() -> list[bytes]:
    """States with and without cuts, and parameters."""
    state = SettledState.genesis(epoch(0, 3), staleness=2)
    states = [state]
    for height in range(1, 5):
        cut = [(member(number), height) for number in (1, 2, 3)]
        states.append(states[-1].after(cut, epoch(height, 3)))
    return [*(each.to_bytes() for each in states), epoch(1, 2).to_bytes(), CERTIFIED.settled]


def identity(data: bytes) -> None:
    """A key file."""
    path = _file("identity.key", data)
    try:
        found = Identity.load(path)
    except UserError as error:
        _require_one_line(error)
        return
    assert len(found.node_id) == 32
    assert len(found.sign(b"message")) == 64


def identity_seeds() -> list[bytes]:
    """A key, one of another kind, one that is locked, nothing."""
    path = _directory() / "made.key"
    path.unlink(missing_ok=True)
    Identity.create(path)
    key = path.read_bytes()
    locked = key.replace(b"BEGIN PRIVATE", b"BEGIN ENCRYPTED PRIVATE")
    return [key, locked.replace(b"END PRIVATE", b"END ENCRYPTED PRIVATE"), key[:60], b""]


def config(data: bytes) -> None:
    """A node.toml. What is accepted can be written down again and means the same."""
    path = _file("node.toml", data)
    try:
        found = load_settings(path)
    except UserError as error:
        _require_one_line(error)
        return
    _file("again.toml", document_settings(_values(found)).encode())
    assert load_settings(_directory() / "again.toml") == found


def _values(settings: Settings) -> dict[str, object]:
    return {
        f"{section}.{key}": getattr(getattr(settings, section), key)
        for section, kind in SECTIONS.items()
        for key in kind.model_fields
    }


def config_seeds() -> list[bytes]:
    """What `shoal init` writes, and some of what people write."""
    return [
        document_settings(_values(Settings())).encode(),
        document_settings({"node.name": "a", "node.peers": ["127.0.0.1:1"]}).encode(),
        b'[node]\nlisten = "[::1]:7400"\npeers = "a:1, b:2"\n[train]\ndata = "text"\n',
        b'node.name = "x"\n[retention]\npinned = [1, 2]\n',
        b'[consensus]\nbase_timeout_s = inf\n[log]\nlevel = "debug"\n',
    ]
