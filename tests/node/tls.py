"""Links, servers and clients over the real transport, for tests that have no whole node."""

import hashlib
import time
from collections.abc import Callable, Collection
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shoal.node.certificates import issue_leaf
from shoal.node.channels import open_channel
from shoal.node.identity import Identity
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.trust import Trust


def identity_of(name: str) -> Identity:
    """The same key for the same name, in every process."""
    seed = hashlib.sha256(name.encode()).digest()
    return Identity(Ed25519PrivateKey.from_private_bytes(seed))


# Whoever serves in such a test, and whoever asks.
HOLDER, CLIENT = identity_of("holder"), identity_of("client")


def make_links(
    identity: Identity,
    members: Collection[bytes] | Callable[[], Collection[bytes]],
    *,
    mesh_id: bytes = bytes(32),
    clock: Callable[[], float] = time.time,
    **changes: Any,
) -> Links:
    """The links of a node that trusts these members and does nothing with what it hears."""
    known = members if callable(members) else lambda: members
    arguments: dict[str, Any] = {
        "address": "",
        "meters": Meters(),
        "boot": 1,
        "on_up": lambda peer: None,
        "on_down": lambda peer: None,
        "on_message": lambda peer, message: None,
        "on_evidence": lambda operation: None,
        **changes,
    }
    trust = Trust(identity, known, clock=clock)
    return Links(identity=identity, mesh_id=mesh_id, trust=trust, **arguments)


def channel_to(address: str, peer: bytes, identity: Identity | None = CLIENT) -> grpc.aio.Channel:
    """A channel to the node with this id, as the owner of `identity`; None shows no leaf."""
    leaf = issue_leaf(identity, time.time()) if identity is not None else None
    return open_channel(address, peer, leaf)
