"""An agreed model where replicas never become equal: the median of snapshots, in integers.

Members that listen to neighbours alone have no model in common that a checkpoint could be. So each
rounds its own to fixed point every E rounds, k = ceil(2n/3) of these snapshots count, and with A_j
their integers

    A[p] = median over j of A_j[p]          of an even number the two in the middle, halved, down

which is the same for all who hold the same snapshots, in any order. Everybody goes on from A.

Which k is decided by what is there and by a seed that nobody chooses, the last agreed root: the
first k, in rendezvous order, of those that came. In a mesh above COMMITTEE_SIZE the members that
come first in that order stand for all, as validators do, so the price does not grow with n.

Why the median: at most f = floor((n - 1) / 3) members lie, and k > 2 f, so at each position more
than half of the integers are honest and the one in the middle lies between two honest ones,
whatever the liars say. To leave f out at either end and average the rest is the same thing, since
one or two are left. The medoid is one member's model, without what averaging is good for; and a
mean of those near it goes where liars push it, each as far as it dares. Snapshots are dense, so
unlike in delta-log a rule for each coordinate has something to go by.

Source: coordinate-wise median and trimmed mean, Yin et al., 2018, arXiv:1803.01498; agreed
snapshots: reference/algorithms.md 1.5.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES
from shoal.gossip.errors import GossipError
from shoal.gossip.placement import ranking
from shoal.gossip.schema import ModelSchema

DOMAIN = b"SHOAL-SNAPSHOT\x01"
# As many as vote on a checkpoint at most.
COMMITTEE_SIZE = 31
# Positions whose median is worked out at a time, so that memory does not grow with k times P.
PIECE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One member's model at the end of an epoch."""

    sender: bytes
    model: Anchor

    @property
    def size_bytes(self) -> int:
        """Four bytes a parameter, header and signature."""
        return BLOB_OVERHEAD_BYTES + 4 * self.model.values.numel()


def take_snapshot(me: bytes, schema: ModelSchema, weights: torch.Tensor) -> Snapshot | None:
    """Round one's own model, float32 [P]; None where it is not finite or does not fit."""
    try:
        return Snapshot(me, Anchor.from_weights(schema, weights))
    except ValueError:
        return None


def committee(members: Collection[bytes], seed: bytes) -> list[bytes]:
    """Whose snapshots may count, in the order in which they are taken."""
    return ranking(DOMAIN + seed, members)[:COMMITTEE_SIZE]


def needed(members: int) -> int:
    """k: how many snapshots count, of a committee of so many."""
    return -(-2 * members // 3)


def choose(
    snapshots: Iterable[Snapshot], members: Collection[bytes], seed: bytes, schema: ModelSchema
) -> list[Snapshot]:
    """Those that count, of at most one from each sender and in any order.

    One that is of another model, or beyond an anchor's range, is as good as none. Raises
    GossipError("too-few-snapshots").
    """
    order = committee(members, seed)
    sound = {
        snapshot.sender: snapshot
        for snapshot in snapshots
        if snapshot.model.schema.digest == schema.digest and not snapshot.model.out_of_range()
    }
    found = [sound[member] for member in order if member in sound]
    if len(found) < needed(len(order)):
        raise GossipError("too-few-snapshots", f"{len(found)} of {needed(len(order))}")
    return found[: needed(len(order))]


def median_model(chosen: Sequence[Snapshot]) -> Anchor:
    """A: the same bits for everybody, in whatever order they stand."""
    models = [snapshot.model for snapshot in chosen]
    values = torch.empty_like(models[0].values)
    for start in range(0, values.numel(), PIECE):
        piece = torch.stack([model.values[start : start + PIECE] for model in models])
        ordered = piece.sort(dim=0).values.to(torch.int64)
        middle = ordered[(len(models) - 1) // 2] + ordered[len(models) // 2]
        values[start : start + PIECE] = middle >> 1
    return Anchor(models[0].schema, values)
