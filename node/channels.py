"""Client channels: each is pinned to one node, by the only authority that its leaf may come from.

Python's gRPC can change neither roots nor leaf of a channel, so a channel lives as long as what it
was made with: until the peer moves, is no member any more, or this node's leaf is replaced.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from shoal.node.certificates import Leaf, host_name, issue_leaf, trust_anchor
from shoal.node.identity import Identity
from shoal.node.strict import strict_stub
from shoal.node.trust import Trust
from shoal.node.wire import MESSAGE_BYTES_MAX

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

# A transfer that runs on a channel that is being replaced may take so long to end.
CLOSE_GRACE_S = 60.0

CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def open_channel(address: str, peer: bytes, leaf: Leaf | None) -> grpc.aio.Channel:
    """A channel to `peer`, whoever answers at the address; `leaf` is what we show, if anything."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=trust_anchor(peer),
        private_key=leaf.key if leaf is not None else None,
        certificate_chain=leaf.certificate if leaf is not None else None,
    )
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", host_name(peer)))
    return grpc.aio.secure_channel(address, credentials, options=options)


def own_channel(address: str, identity: Identity, now: float) -> grpc.aio.Channel:
    """A channel to the node whose key this is: its operator may ask it what members may ask."""
    return open_channel(address, identity.node_id, issue_leaf(identity, now))


@dataclass(frozen=True, slots=True)
class _Open:
    address: str
    leaf: Leaf
    channel: grpc.aio.Channel


class Channels:
    """The channels of one node to the others, one for each."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._open: dict[bytes, _Open] = {}
        self._closing: set[asyncio.Task[None]] = set()
        trust.watchers.append(self.refresh)

    def stub(self, peer: bytes, address: str) -> "MeshAsyncStub":
        """A client for `peer` at `address`."""
        leaf, found = self._trust.leaf, self._open.get(peer)
        if found is None or found.address != address or found.leaf is not leaf:
            self._retire(peer, CLOSE_GRACE_S)
            found = _Open(address, leaf, open_channel(address, peer, leaf))
            self._open[peer] = found
        return strict_stub(found.channel)

    def refresh(self) -> None:
        """Close what leads to somebody who is no member any more, at once."""
        for peer in self._open.keys() - self._trust.trusted:
            self._retire(peer, None)

    def _retire(self, peer: bytes, grace_s: float | None) -> None:
        found = self._open.pop(peer, None)
        if found is not None:
            task = asyncio.create_task(found.channel.close(grace_s), name="close channel")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        for each in self._open.values():
            await each.channel.close()
        self._open.clear()
