"""Whom the transport lets in: the members of this moment, and nobody else.

gRPC asks for the list of roots before each handshake, from threads of its own. So what it is given
is an immutable snapshot, and "nothing new" where nothing is: then a handshake costs 2 ms, however
many members there are. A new snapshot also makes the tickets for resuming older sessions worthless.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from shoal.node.certificates import Leaf, issue_leaf, trust_anchor
from shoal.node.identity import Identity

log = structlog.get_logger()

# How often the members and the age of the leaf are looked at, in seconds.
REFRESH_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the next handshake is made with."""

    leaf: Leaf
    trusted: frozenset[bytes]
    roots: bytes


class Trust:
    """This node's leaf and the members that it talks to, kept current by `refresh`."""

    def __init__(
        self,
        identity: Identity,
        members: Callable[[], Collection[bytes]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """members: whom to talk to at this moment; clock: seconds since 1970."""
        self.identity = identity
        self._members = members
        self._clock = clock
        # Nobody yet: the members may not be known before the rest of the node is there.
        self._snapshot = Snapshot(issue_leaf(identity, clock()), frozenset(), b"")
        # What is done after each refresh: whatever rests on a leaf or a membership looks again.
        self.watchers: list[Callable[[], None]] = []

    def now(self) -> float:
        """Seconds since 1970 on the clock that leaves are judged by."""
        return self._clock()

    @property
    def leaf(self) -> Leaf:
        """The leaf that new connections are made with."""
        return self._snapshot.leaf

    @property
    def trusted(self) -> frozenset[bytes]:
        """Those whose connections are accepted, as of the last refresh, and this node itself."""
        return self._snapshot.trusted

    def admits(self, peer: bytes) -> bool:
        """Whether calls of this node are answered now: a member's, or this node's own."""
        return peer == self.identity.node_id or peer in self._members()

    async def run(self) -> None:
        """Refresh for ever."""
        while True:
            self.refresh()
            await asyncio.sleep(REFRESH_INTERVAL_S)

    def refresh(self) -> None:
        """Take up who has joined and who is out, and make the next leaf when it is time."""
        self._renew()
        for watcher in self.watchers:
            watcher()

    def _renew(self) -> None:
        leaf = self._snapshot.leaf
        if self._clock() >= leaf.rotate_at:
            leaf = issue_leaf(self.identity, self._clock())
            log.info("leaf.rotated", good_until=int(leaf.not_after))
        elif self._wanted() == self._snapshot.trusted:
            return
        self._snapshot = self._take(leaf)

    def _wanted(self) -> frozenset[bytes]:
        # Its own id is there for its operator, who speaks to the node with the node's own key.
        return frozenset({*self._members(), self.identity.node_id})

    def _take(self, leaf: Leaf) -> Snapshot:
        trusted = self._wanted()
        return Snapshot(leaf, trusted, b"".join(map(trust_anchor, sorted(trusted))))

    def mutual_credentials(self) -> grpc.ServerCredentials:
        """For the members' port: both sides show a leaf."""
        return self._credentials(mutual=True)

    def join_credentials(self) -> grpc.ServerCredentials:
        """For the join port: only this node shows a leaf, for a newcomer has no name yet."""
        return self._credentials(mutual=False)

    def _credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        self._renew()
        served = self._snapshot

        def configuration(snapshot: Snapshot) -> grpc.ServerCertificateConfiguration:
            chain = [(snapshot.leaf.key, snapshot.leaf.certificate)]
            roots = snapshot.roots if mutual else None
            return grpc.ssl_server_certificate_configuration(chain, roots)

        def fetch() -> Any:
            # On gRPC's own threads, one call at a time.
            nonlocal served
            snapshot = self._snapshot
            same = snapshot.leaf is served.leaf and (snapshot.roots == served.roots or not mutual)
            if same:
                return None
            served = snapshot
            return configuration(snapshot)

        return grpc.dynamic_ssl_server_credentials(
            configuration(served), fetch, require_client_authentication=mutual
        )
