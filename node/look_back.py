"""Looking back at a member that asks whether the mesh can reach it (`shoal doctor`).

What is looked at is the address that the ledger has for the caller, by the id that TLS has proved:
a request has no room for another, so nobody can use this to make a member connect somewhere.
Looks are rare for each member and few at a time for all; beyond that a member is told so, with the
time and the version of this node all the same.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from shoal import __version__
from shoal.node.errors import PeerError
from shoal.node.gate import Gate
from shoal.node.identity import short
from shoal.node.look import Sight, sight_of
from shoal.node.look_wire import LookedBack, make_looked_back
from shoal.node.rate import TokenBucket
from shoal.node.screen import sound
from shoal.node.trust import Trust
from shoal.node.wire import PROTOCOL_VERSION
from shoal.proto import look_pb2, look_pb2_grpc

# One member may be looked at so often: at once, and then one in so many seconds.
LOOKS_AT_ONCE_MAX = 3
LOOK_EVERY_S = 10.0
# Of all members: looks that are under way, and looks a second.
LOOKS_OPEN_MAX = 8
LOOKS_PER_S_MAX = 2
# What one look may take; whoever asks waits a little longer.
LOOK_S_MAX = 3.0
LOOKED_AT_MAX = 2048


class Lookout:
    """Looks at members, not too often. Times given are seconds that never decrease."""

    def __init__(self, address_of: Callable[[bytes], str], now: Callable[[], float]) -> None:
        """address_of: a member's address in the ledger, "" for none; now: seconds since 1970."""
        self._address_of = address_of
        self._now = now
        self._of_all = TokenBucket(LOOKS_PER_S_MAX, burst=2 * LOOKS_OPEN_MAX)
        self._of_one: dict[bytes, TokenBucket] = {}
        self._open = 0

    async def look(self, peer: bytes, at: float) -> tuple[Sight, str]:
        """What is seen of `peer` from here, and at which address."""
        address = self._address_of(peer)
        if not address:
            return Sight.NOT_LISTED, ""
        if not self._admits(peer, at):
            return Sight.NOT_NOW, address
        self._open += 1
        try:
            return await sight_of(address, peer, self._now(), LOOK_S_MAX), address
        finally:
            self._open -= 1

    def _admits(self, peer: bytes, at: float) -> bool:
        own = self._of_one.pop(peer, None) or TokenBucket(1 / LOOK_EVERY_S, burst=LOOKS_AT_ONCE_MAX)
        # The one that asked longest ago is forgotten first.
        self._of_one[peer] = own
        if len(self._of_one) > LOOKED_AT_MAX:
            del self._of_one[next(iter(self._of_one))]
        if self._open >= LOOKS_OPEN_MAX or own.wait(at) > 0 or self._of_all.wait(at) > 0:
            return False
        own.take(1, at)
        self._of_all.take(1, at)
        return True


class Listed(Protocol):
    """What is asked of the node."""

    def address_of(self, member: bytes) -> str:
        """Return the address that the ledger has for a member, "" where it has none."""


class LookServicer(look_pb2_grpc.LookServicer):
    """What a member's operator may ask of the others."""

    def __init__(self, listed: Listed, trust: Trust, gate: Gate) -> None:
        self._trust = trust
        self._gate = gate
        self._lookout = Lookout(listed.address_of, trust.now)

    async def Back(self, request: look_pb2.LookRequest, context: Any) -> look_pb2.LookReply:
        """Look at the caller; the gate turns a PeerError into a refusal."""
        received = self._trust.now()
        sound(request)
        caller = self._gate.caller(context).node_id
        if caller == self._trust.identity.node_id:
            raise PeerError("own-key", f"{short(caller)} asks itself; only others can look at it")
        outcome, address = await self._lookout.look(caller, time.monotonic())
        return make_looked_back(
            LookedBack(
                outcome=outcome,
                address=address,
                protocol=PROTOCOL_VERSION,
                version=__version__,
                received=received,
                answered=self._trust.now(),
            )
        )


def serve_looks(server: grpc.aio.Server, listed: Listed, trust: Trust, gate: Gate) -> None:
    """Register the service; `server` is the members' alone, behind the gate."""
    look_pb2_grpc.add_LookServicer_to_server(LookServicer(listed, trust, gate), server)
