"""Whom a node keeps company with: whom it talks to, and whom it tells newcomers of."""

from collections.abc import Collection

from shoal.consensus.replica import Replica
from shoal.node.bulk_wire import Contact
from shoal.node.config import NodeSettings
from shoal.node.links import Links


def trusted(replica: Replica, me: bytes, told: Collection[bytes]) -> set[bytes]:
    """Whom to talk to at this moment: the members.

    A validator that has left is heard until its epoch ends, for its vote may be needed. A node that
    is no member yet does not know the newest ones, so it also hears those that it was `told` of.
    """
    members = {*replica.ledger.members, *replica.validators.keys}
    return members if me in replica.ledger.members else members.union(told)


def contacts(me: bytes, places: NodeSettings, links: Links) -> list[Contact]:
    """This node and the members that it has links to, as far as they take newcomers."""
    found = [Contact(me, places.advertised, places.join_advertised)]
    for peer in links.connected:
        known = links.record(peer)
        found.append(Contact(peer, known.address, known.join_address))
    return [each for each in found if each.join_address]
