"""Whom a node keeps company with: whom it talks to, and whom it tells newcomers of."""

import time
from collections.abc import Callable, Collection

from shoal.consensus.replica import Replica
from shoal.node.bulk_wire import Contact
from shoal.node.config import NodeSettings
from shoal.node.links import Links

# How long somebody who has left of its own will is still answered, in seconds.
FAREWELL_S = 30.0


class Company:
    """Whom to talk to at this moment."""

    def __init__(
        self,
        replica: Callable[[], Replica],
        *,
        me: bytes,
        told: Collection[bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """told: members that the operator, or the contact of the join, named."""
        self._replica = replica
        self._me = me
        self._told = told
        self._clock = clock
        self._last: set[bytes] = set()
        self._heard_until: dict[bytes, float] = {}

    def trusted(self) -> set[bytes]:
        """The members, and who else has to be heard.

        A validator that has left is heard until its epoch ends, for its vote may be needed. Who
        has left, and was not put out, is heard for a little longer, to learn that it may go. A node
        that is no member yet does not know the newest ones, so it also hears those that it was
        told of.
        """
        replica, now = self._replica(), self._clock()
        ledger = replica.ledger
        members = {*ledger.members, *replica.validators.keys}
        for peer in self._last - members:
            self._heard_until[peer] = now + FAREWELL_S
        self._last = members
        self._heard_until = {p: until for p, until in self._heard_until.items() if now < until}
        leaving = {peer for peer in self._heard_until if not ledger.is_evicted(peer)}
        newest = self._told if self._me not in ledger.members else ()
        return members.union(leaving, newest)


def contacts(me: bytes, places: NodeSettings, links: Links) -> list[Contact]:
    """This node and the members that it has links to, as far as they take newcomers."""
    found = [Contact(me, places.advertised, places.join_advertised)]
    for peer in links.connected:
        known = links.record(peer)
        found.append(Contact(peer, known.address, known.join_address))
    return [each for each in found if each.join_address]
